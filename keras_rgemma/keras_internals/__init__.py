"""Wraps the private and undocumented names of other packages that this package uses.

One file a subject, one function or mixin a name. No other file uses such a name, as
`tests/test_private_names.py` checks. `tests/test_keras_internals.py` states the contract of each
name; if it fails with a newer Keras, repair this folder.

Public names that those packages could offer instead:

- Keras: a public `keras.tree.register`, as `jax.tree_util` has it (`pytree`).
- Keras: a public scope for variables without first values, and `Variable.initialize` (`variables`).
- Keras: `Layer.flatten_layers`; `disable_lora` beside `enable_lora`; LoRA kept apart in files; the
  zero point in the file of a layer that GPTQ or AWQ rounded to four bits, which Keras cannot load
  without it (`layers`).
- Keras: an argument of GPTQ and AWQ for the layers of a block to round (`calibration`).
- Keras: an adapter of data for batches that Python makes, which begins each epoch anew
  (`data_adapters`).
- Keras: a `BackupAndRestore` that writes weights and progress as one file, and a `fit` that
  drops the epoch of a backup when it ends (`training`).
- Keras: a layout that can be given to a variable after it was made, and a layout map that sees the
  shape of a variable (`variables`); an error that names the rows and the axis of a mesh that does
  not divide them (`distribution`).
- Keras: files that are written from the shards of a variable and read into them (`shards`).
- KerasHub: reading the config of a preset (`presets`).
- KerasHub: a hook for the processors of `SentencePieceTokenizer`, and `add_special_token`
  (`tokenizers`).
- KerasHub: a `generate_preprocess` that respects `add_start_token`. Keras: whether a pipeline of
  grain is calling (`preprocessors`).
- JAX: the number of compiled programs of a jitted function (`jax`).
- Keras: a `DeviceMesh` of devices of JAX, such as those of a topology, which are not there (`jax`).
- PyTorch: a choice of oneDNN for products of float32 on a CPU (`torch`).
- huggingface_hub: the folder of a repository in the cache. kagglehub: parsing a handle (`hubs`).
"""
