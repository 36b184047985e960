"""The causal language model: logits, text generation, scoring."""

import pathlib

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.model.presets import Presets, has_tokenizer, resolve
from keras_rgemma.model.samplers import compares_hidden_states, read_sampler, without_softmax
from keras_rgemma.ops.documents import document_positions
from keras_rgemma.shapes import check_keywords, check_padding_mask, check_token_ids


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaCausalLM(keras_hub.models.CausalLM):
    """RecurrentGemma with a language-model head: `generate`, `fit`, `score`.

    Args:
        backbone: `RGemmaBackbone`.
        preprocessor: `RGemmaCausalLMPreprocessor`, or None for a model that takes and returns
            dicts of arrays instead of text.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: as of `RGemmaBackbone`.

    Returns:
        Logits, compute dtype [B, T, V], soft cap included.

    Example:
    ```python
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    lm.generate("In the beginning", max_new_tokens=16)
    lm.compile(sampler="top_p")
    lm.generate(["In the beginning", "And God said"], max_length=32)
    lm.fit(["The quick brown fox.", "Call me Ishmael."], batch_size=2)
    ```
    """

    backbone_cls = RGemmaBackbone
    preprocessor_cls = RGemmaCausalLMPreprocessor
    presets = Presets()

    def __init__(self, backbone, preprocessor=None, **kwargs):
        check_keywords(kwargs, ("name", "trainable", "compile"), type(self).__name__)
        if not isinstance(backbone, RGemmaBackbone):
            raise TypeError(
                f"`backbone` must be an RGemmaBackbone. Received: {backbone!r}. A preset is loaded "
                f"with {type(self).__name__}.from_preset."
            )
        self.backbone = backbone
        self.preprocessor = preprocessor
        check_vocabularies(preprocessor, backbone.vocabulary_size)
        self._scoring_programs = None
        outputs = backbone.token_embedding(backbone(backbone.input), reverse=True)
        super().__init__(inputs=backbone.input, outputs=outputs, **kwargs)
        if not hasattr(self, "sampler"):  # with `compile=False`
            self.sampler = keras_hub.samplers.GreedySampler()
            self.generate_function = None

    @classmethod
    def from_preset(cls, preset, load_weights=True, *, revision=None, **kwargs):
        """Creates the model from a preset, with a preprocessor if the preset has a tokenizer.

        Args:
            preset, load_weights, revision: see `RGemmaBackbone.from_preset`.
            **kwargs: `dtype`, `preprocessor`, and what `keras.Model` takes.

        Raises:
            ValueError: see `RGemmaBackbone.from_preset`, as for the errors of a hub.

        Example:
        ```python
        lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en", dtype="bfloat16")
        ```
        """
        from keras_rgemma.checkpoints import keras_preset
        from keras_rgemma.checkpoints.folder import open_checkpoint
        from keras_rgemma.checkpoints.hub import CONFIG, WEIGHTS

        folder = resolve(preset, WEIGHTS if load_weights else CONFIG, revision)
        checkpoint = open_checkpoint(folder)
        if checkpoint:
            return cls._from_checkpoint(checkpoint, load_weights, **kwargs)
        if pathlib.Path(folder).is_dir() and not has_tokenizer(folder):
            kwargs.setdefault("preprocessor", None)
        return keras_preset.load(super().from_preset, folder, load_weights, **kwargs)

    @classmethod
    def _from_checkpoint(cls, checkpoint, load_weights, dtype=None, **kwargs):
        from keras_rgemma.checkpoints.folder import tokenizer_file

        if "preprocessor" not in kwargs and tokenizer_file(checkpoint.path):
            kwargs["preprocessor"] = cls.preprocessor_cls.from_preset(checkpoint.path)
        # Before gigabytes are read.
        check_vocabularies(kwargs.get("preprocessor"), checkpoint.config.vocabulary_size)
        backbone = checkpoint.backbone(cls.backbone_cls, load_weights, dtype=dtype)
        return cls(backbone, **kwargs)

    def compile(
        self, optimizer="auto", loss="auto", *, weighted_metrics="auto", sampler="greedy", **kwargs
    ):
        """Configures training and generation, as `keras_hub.models.CausalLM.compile` does.

        Args:
            optimizer: "auto" for `Adam(2e-5)`, or what `keras.Model.compile` takes.
            loss: "auto" for sparse categorical cross-entropy from logits.
            weighted_metrics: "auto" for sparse categorical accuracy.
            sampler: name or instance from `keras_hub.samplers`.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: a sampler that `generate` cannot use.
        """
        sampler = read_sampler(sampler, self.backbone.vocabulary_size)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            weighted_metrics=weighted_metrics,
            sampler=sampler,
            **kwargs,
        )

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Writes a preset folder: see `RGemmaBackbone.save_to_preset`."""
        from keras_rgemma.checkpoints.saving import preset_folder

        with preset_folder(preset_dir) as folder:
            super().save_to_preset(folder, max_shard_size)

    def export_to_transformers(self, path, dtype=None, overwrite=False):
        """Writes a folder that Hugging Face's transformers loads as it stands.

        It holds the weights (with LoRA merged, if it is switched on), the config and, if there is
        a preprocessor, the tokenizer and what ends a text. The folder gets its name when it is
        complete: a call that is stopped halfway leaves nothing that looks whole.

        Args:
            path: str or path of a folder, which must not hold anything yet.
            dtype: "float32", "float16" or "bfloat16"; None for the dtype of the variables.
            overwrite: bool, whether to replace what is there.

        Raises:
            FileExistsError: there is something already.
            ValueError: a quantized model, or an architecture that transformers cannot express.

        Example:
        ```python
        lm.export_to_transformers("my_model")
        transformers.AutoModelForCausalLM.from_pretrained("my_model")
        ```
        """
        from keras_rgemma.checkpoints.saving import export

        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        export(self.backbone, tokenizer, path, "transformers", dtype, overwrite)

    # === What generation needs of a model ===

    def initial_state(self, batch_size):
        """The `ModelState` of `batch_size` rows that have consumed nothing."""
        return self.backbone.initial_state(batch_size)

    def step(self, token_ids, padding_mask, state):
        """Consumes more tokens of each row: see `RGemmaBackbone.step`."""
        return self.backbone.step(token_ids, padding_mask, state)

    def compute_logits(self, hidden):
        """Logits [..., V] of final hidden states [..., D], soft cap included."""
        return self.backbone.token_embedding(hidden, reverse=True)

    # === Generation ===

    def generate(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        strip_prompt=False,
        *,
        max_new_tokens=None,
    ):
        """Continues prompts, with the sampler given to `compile`.

        With a deterministic sampler a row's answer depends on that row alone: not on the rows
        beside it, on padding, or on `max_length`.

        Args:
            inputs: a str; a list, tuple or array of str; a dict of `token_ids` int [B, T] and,
                if rows are padded, `padding_mask` [B, T]; or a `tf.data.Dataset` of batches of
                any of these.
            max_length: int, how many tokens a row may have in all, its prompt included. With
                neither limit: the width of `token_ids` for a dict, else the preprocessor's
                `sequence_length` for the total, or for the new tokens of a prompt that is longer
                than it.
            stop_token_ids: "auto" for the tokenizer's `<eos>` and `<end_of_turn>`, a sequence of
                ids, or None to always use up the limit.
            strip_prompt: bool, whether to return the new text alone.
            max_new_tokens: int, how many tokens each row may get, instead of `max_length`.

        Returns:
            A str for a str, a list of str for several, a dict of arrays `token_ids` and
            `padding_mask` (rows begin at column 0) for a dict.

        Raises:
            ValueError: no prompts, an empty prompt without a start token, ids outside of the
                vocabulary, a mask of another shape, a limit that is negative, shorter than a
                prompt or out of reach, or both limits.
            TypeError: prompts that are no text.

        Example:
        ```python
        lm.generate("In the beginning", max_length=64)
        lm.generate({"token_ids": np.array([[2, 300, 301]])}, max_new_tokens=8)
        ```
        """
        from keras_rgemma.generation.requests import TokenBudget, concatenated, read_batches

        stop_token_ids = self._stop_token_ids(stop_token_ids)
        budget = TokenBudget(
            max_length, max_new_tokens, getattr(self.preprocessor, "sequence_length", None)
        )
        batches, is_scalar = read_batches(inputs)
        outputs = [
            self._generate_batch(batch, budget, stop_token_ids, strip_prompt) for batch in batches
        ]
        if isinstance(outputs[0], dict):
            return concatenated(outputs)
        texts = [text for output in outputs for text in output]
        return texts[0] if is_scalar else texts

    def _generate_batch(self, batch, budget, stop_token_ids, strip_prompt):
        generate = self._generate_arrays if isinstance(batch, dict) else self._generate_texts
        return generate(batch, budget, stop_token_ids, strip_prompt)

    def _generate_arrays(self, batch, budget, stop_token_ids, strip_prompt):
        from keras_rgemma.generation.requests import arrays_of, rows_of

        if "token_ids" not in batch:
            raise ValueError(
                "A dict of inputs must hold `token_ids`, and `padding_mask` if rows are padded. "
                f"Received the keys {sorted(batch)}."
            )
        token_ids = check_token_ids(batch["token_ids"], self.backbone.vocabulary_size)
        mask = check_padding_mask(batch.get("padding_mask"), token_ids.shape)
        prompts, width = rows_of(token_ids, mask), token_ids.shape[1]
        budgets = budget.of([len(prompt) for prompt in prompts], default_length=width)
        new = self.make_generate_function().generate(prompts, budgets, stop_token_ids)
        return arrays_of([[] for _ in prompts] if strip_prompt else prompts, new, width)

    def _generate_texts(self, batch, budget, stop_token_ids, strip_prompt):
        if self.preprocessor is None:
            raise ValueError(
                "A model without a preprocessor takes a dict of `token_ids` and `padding_mask`. "
                f"Received text: {batch[0]!r}. Attach a preprocessor, or tokenize it first."
            )
        check_vocabularies(self.preprocessor, self.backbone.vocabulary_size)
        prompts = self.preprocessor.prompt_token_ids(batch)
        budgets = budget.of([len(prompt) for prompt in prompts])
        new = self.make_generate_function().generate(prompts, budgets, stop_token_ids)
        end_of_turn = getattr(self.preprocessor.tokenizer, "end_token2_id", None)
        if end_of_turn in stop_token_ids:  # it ends the answer and is no part of its text
            new = [row[:-1] if len(row) and row[-1] == end_of_turn else row for row in new]
        prompts = [[] for _ in prompts] if strip_prompt else prompts
        return self.preprocessor.text_of(
            [[*prompt, *row] for prompt, row in zip(prompts, new, strict=True)]
        )

    def _stop_token_ids(self, stop_token_ids):
        if stop_token_ids is None:
            return ()
        if isinstance(stop_token_ids, str):
            if stop_token_ids != "auto":
                raise ValueError(
                    "`stop_token_ids` must be 'auto', None or a sequence of token ids. "
                    f"Received: {stop_token_ids!r}."
                )
            if self.preprocessor is None:
                raise ValueError(
                    "`stop_token_ids='auto'` needs a preprocessor, whose tokenizer knows what ends "
                    "a text. Pass a tuple of token ids, or None to use up the limit."
                )
            tokenizer = self.preprocessor.tokenizer
            ends = (tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", None))
            return tuple(id for id in ends if id is not None)
        from keras_rgemma.generation.requests import read_stop_token_ids

        return read_stop_token_ids(stop_token_ids, self.backbone.vocabulary_size)

    def make_generate_function(self):
        """The compiled programs of `generate`, made anew when weights or settings are others."""
        from keras_rgemma.generation.programs import GenerationPrograms

        sampler = self.sampler = read_sampler(self.sampler, self.backbone.vocabulary_size)
        if self.generate_function is None or not self.generate_function.are_for(self, sampler):
            self.generate_function = GenerationPrograms(
                self,
                sampler,
                runs=without_softmax(sampler),
                hidden_dim=self.backbone.hidden_dim if compares_hidden_states(sampler) else None,
            )
        return self.generate_function

    # === Scoring ===

    def score(
        self,
        token_ids,
        padding_mask=None,
        scoring_mode="logits",
        layer_intercept_fn=None,
        target_ids=None,
    ):
        """Logits or losses of given tokens, as `keras_hub.models.GemmaCausalLM.score`.

        Args:
            token_ids: int [B, T].
            padding_mask: int or bool [B, T]; None: no pads. Documents in a packed row are scored
                each for itself.
            scoring_mode: "logits" or "loss".
            layer_intercept_fn: None, or a function of activations [B, T, D] and a layer's index
                (-1 for the embeddings) that returns the activations to go on with. The layers then
                run one by one, as gradients with respect to activations need; without it they are
                one program, which on PyTorch keeps no gradients.
            target_ids: int [B, T], the tokens that the loss is taken against.

        Returns:
            Float [B, T, V] for "logits", float [B, T] for "loss".

        Raises:
            ValueError: another `scoring_mode`, no targets for "loss", targets or a mask of
                another shape, ids outside of the vocabulary.

        Example:
        ```python
        ids = np.array([[2, 300, 301, 302]])
        losses = lm.score(ids, scoring_mode="loss", target_ids=np.roll(ids, -1, axis=1))
        ```
        """
        if scoring_mode not in ("logits", "loss"):
            raise ValueError(
                f"`scoring_mode` must be 'logits' or 'loss'. Received: {scoring_mode!r}."
            )
        if scoring_mode == "loss" and target_ids is None:
            raise ValueError("`scoring_mode='loss'` needs `target_ids`, the tokens to predict.")
        vocabulary_size = self.backbone.vocabulary_size
        ids = check_token_ids(_numpy(token_ids), vocabulary_size)
        mask = check_padding_mask(_numpy(padding_mask), ids.shape)
        if layer_intercept_fn:
            logits = self._logits(
                ops.convert_to_tensor(ids), ops.convert_to_tensor(mask), layer_intercept_fn
            )
        else:
            logits = self._score_in_one_program(ids, mask)
        if scoring_mode == "logits":
            return logits
        targets = check_token_ids(_numpy(target_ids), vocabulary_size, name="target_ids")
        if targets.shape != ids.shape:
            raise ValueError(
                f"`target_ids` must have the shape of `token_ids`, {ids.shape}. Received: "
                f"{targets.shape}."
            )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        return loss(ops.convert_to_tensor(targets), logits)

    def _logits(self, token_ids, padding_mask, layer_intercept_fn=None):
        hidden = self.backbone.call_layers(
            token_ids, document_positions(padding_mask), layer_intercept_fn=layer_intercept_fn
        )
        return self.compute_logits(hidden)

    def _score_in_one_program(self, ids, mask):
        from keras_rgemma.generation.programs import Programs, padded_length

        if self._scoring_programs is None or not self._scoring_programs.are_for(self):
            self._scoring_programs = Programs(self)
        length = ids.shape[1]
        pads = [(0, 0), (0, padded_length(length) - length)]
        rows = (ops.convert_to_tensor(np.pad(x, pads)) for x in (ids, mask))
        return self._scoring_programs.compiled(self._logits)(*rows)[:, :length]


def _numpy(x):
    """Tensors as NumPy arrays, from wherever they lie."""
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else x


def check_vocabularies(preprocessor, vocabulary_size):
    """Raises ValueError if a tokenizer has more tokens than a model has embeddings."""
    tokenizer = getattr(preprocessor, "tokenizer", None)
    # A tokenizer that is being loaded has no vocabulary yet.
    if getattr(tokenizer, "proto", None) is None:
        return
    if tokenizer.vocabulary_size() > vocabulary_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocabulary_size()} tokens, but the embedding only "
            f"{vocabulary_size}. Use the tokenizer that belongs to this model."
        )
