"""The private and undocumented names of other packages that this package uses.

A file a subject, a function or a mixin a name. No other file touches one, as
`tests/test_private_names.py` makes sure. `tests/test_keras_internals.py` says what the other
packages do with each; where it fails with a newer Keras, this folder is the place to mend.

It would be worth offering to those packages what these names are needed for:

- Keras: a public `keras.tree.register`, as `jax.tree_util` has it (`pytree`).
- Keras: a public scope for variables without first values, and `Variable.initialize` (`variables`).
- Keras: `Layer.flatten_layers`; `disable_lora` beside `enable_lora`; LoRA kept apart in files; the
  zero point in the file of a layer that GPTQ or AWQ rounded to four bits, which Keras cannot load
  without it (`layers`).
- Keras: GPTQ and AWQ that are told which layers of a block to round (`calibration`).
- Keras: a `BackupAndRestore` that writes weights and progress as one file, and a `fit` that forgets
  the epoch of a backup when it ends (`training`).
- KerasHub: reading the config of a preset (`presets`).
- KerasHub: a hook for the processors of `SentencePieceTokenizer`, and `add_special_token`
  (`tokenizers`).
- KerasHub: `generate_preprocess` that heeds `add_start_token` (`preprocessors`).
- JAX: the number of programs that a jitted function has (`jax`).
- huggingface_hub: the folder of a repository in the cache. kagglehub: reading a handle (`hubs`).
"""
