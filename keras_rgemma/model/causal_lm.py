"""The causal language model: logits, text generation, scoring."""

import dataclasses
import pathlib

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_rgemma import state as states
from keras_rgemma.config import RGemmaConfig, check_count
from keras_rgemma.model import calibration, training
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.fingerprint import fingerprint
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.model.presets import Presets, has_tokenizer, resolve
from keras_rgemma.model.samplers import (
    compares_hidden_states,
    is_stepwise,
    read_sampler,
    without_softmax,
)
from keras_rgemma.ops.documents import continued_positions, document_positions
from keras_rgemma.shapes import check_keywords, check_padding_mask, check_token_ids

_SIZES = {field.name for field in dataclasses.fields(RGemmaConfig)}


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaCausalLM(training.CausalLM):
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
            **kwargs: `dtype`, `preprocessor`, what `keras.Model` takes, and what the backbone
                takes in place of what the preset says.

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
        if sizes := _taken(kwargs, _SIZES):  # which KerasHub would give to the model
            if "preprocessor" not in kwargs:
                kwargs["preprocessor"] = cls.preprocessor_cls.from_preset(folder)
            sizes |= _taken(kwargs, {"dtype"})
            return cls(cls.backbone_cls.from_preset(folder, load_weights, **sizes), **kwargs)
        return keras_preset.load(super().from_preset, folder, load_weights, **kwargs)

    @classmethod
    def _from_checkpoint(cls, checkpoint, load_weights, dtype=None, **kwargs):
        from keras_rgemma.checkpoints.folder import tokenizer_file

        if "preprocessor" not in kwargs and tokenizer_file(checkpoint.path):
            kwargs["preprocessor"] = cls.preprocessor_cls.from_preset(checkpoint.path)
        # Before gigabytes are read.
        check_vocabularies(kwargs.get("preprocessor"), checkpoint.config.vocabulary_size)
        sizes = _taken(kwargs, _SIZES)
        backbone = checkpoint.backbone(cls.backbone_cls, load_weights, dtype=dtype, **sizes)
        return cls(backbone, **kwargs)

    def compile(
        self, optimizer="auto", loss="auto", *, weighted_metrics="auto", sampler="greedy", **kwargs
    ):
        """Configures training and generation, as `keras_hub.models.CausalLM.compile` does.

        Args:
            optimizer: "auto" for `Adam(2e-5)`, or what `keras.Model.compile` takes.
            loss: "auto" for sparse categorical cross-entropy. The logits are then computed for
                some tokens at a time: at V = 256,000 all logits would take more memory than the
                rest of a step. Any other loss gets all logits, [B, T, V].
            weighted_metrics: "auto" for sparse categorical accuracy, or None. With others (or with
                `metrics` or `loss_weights`) the loss is computed from all logits, too.
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

    def quantize(self, mode=None, config=None, **kwargs):
        """Rounds the weights, as `keras.Model.quantize` does.

        GPTQ and AWQ leave embeddings and RG-LRU gates as they are.

        Args:
            mode: str: "int8", "int4", "float8", "gptq" or "awq".
            config: the `keras.quantizers` configuration of the mode; GPTQ and AWQ need theirs.
            **kwargs: `filters`, which layers are quantized.

        Raises:
            ValueError: a layer is quantized already, or LoRA is enabled and calibration asked for.

        Example:
        ```python
        from keras.quantizers import GPTQConfig

        texts = ["The quick brown fox.", "A lighthouse stands by the sea."]
        config = GPTQConfig(texts, lm.preprocessor.tokenizer, num_samples=8, sequence_length=32)
        lm.quantize("gptq", config=config)
        ```
        """
        calibration.check(self.backbone, mode)
        super().quantize(mode, config=config, **kwargs)

    def get_quantization_layer_structure(self, mode):
        """What GPTQ and AWQ go through, a dict; None for other modes."""
        return self.backbone.get_quantization_layer_structure(mode)

    def export_to_peft(self, path, base_model=None, overwrite=False):
        """Writes what LoRA has learned as an adapter that Hugging Face PEFT loads.

        It fits the original checkpoint, or what `export_to_transformers` wrote before
        `enable_lora` (afterwards that merges). The gates of the recurrence are parameters there,
        which PEFT reads as they are written here from version 0.19.1 on.

        Args:
            path: str or path of a folder, which must not hold anything yet.
            base_model: str, what the adapter names as its base, such as a repository's name.
            overwrite: bool, whether to replace what is there.

        Raises:
            FileExistsError: there is something already.
            ValueError: LoRA is not enabled.

        Example:
        ```python
        lm.export_to_transformers("base")
        lm.backbone.enable_lora(8)
        lm.fit(["In the beginning"])
        lm.export_to_peft("adapter", base_model="base")
        base = transformers.AutoModelForCausalLM.from_pretrained("base")
        peft.PeftModel.from_pretrained(base, "adapter")
        ```
        """
        from keras_rgemma.finetuning import peft

        peft.export(self.backbone, path, base_model, overwrite)

    def load_from_peft(self, path):
        """Loads an adapter that Hugging Face PEFT wrote, and enables LoRA as it needs it.

        Blocks of a gate have matrices B of their own there, and share one here: where they differ,
        the gate gets a rank H times as large, which is exact.

        Args:
            path: str or path of a folder with `adapter_config.json`.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: an adapter of another kind than LoRA, what A and B cannot express (DoRA,
                trained biases, ...), layers or shapes that this model does not have, broken files;
                LoRA of other ranks or on other layers is enabled (call
                `backbone.disable_lora()` first).
        """
        from keras_rgemma.finetuning import peft

        peft.load(self.backbone, path)

    # === What generation needs of a model ===

    def initial_state(self, batch_size):
        """The `ModelState` of `batch_size` rows that have consumed nothing."""
        return self.backbone.initial_state(batch_size)

    def state_specification(self):
        """The `ModelState` with a `keras.KerasTensor` in place of each array."""
        return states.specification(self.backbone.config, self.backbone.compute_dtype)

    def fingerprint(self):
        """The `keras_rgemma.state.Fingerprint` of this architecture with these weights."""
        return fingerprint(self.backbone)

    def step(self, token_ids, padding_mask, state):
        """Consumes more tokens of each row: see `RGemmaBackbone.step`."""
        return self.backbone.step(token_ids, padding_mask, state)

    def compute_logits(self, hidden):
        """Logits [..., V] of final hidden states [..., D], soft cap included."""
        return self.backbone.token_embedding(hidden, reverse=True)

    def make_generate_function(self):
        """The compiled programs of `generate`, made anew when weights or settings are others."""
        from keras_rgemma.generation.programs import GenerationPrograms

        self.sync_weights()
        sampler = self.sampler = read_sampler(self.sampler, self.backbone.vocabulary_size)
        if self.generate_function is None or not self.generate_function.are_for(self, sampler):
            self.generate_function = GenerationPrograms(
                self,
                sampler,
                runs=without_softmax(sampler),
                hidden_dim=self.backbone.hidden_dim if compares_hidden_states(sampler) else None,
                is_stepwise=is_stepwise(sampler),
            )
        return self.generate_function

    # === Generation ===

    def generate(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        strip_prompt=False,
        *,
        max_new_tokens=None,
        stop=None,
        num_return_sequences=1,
        state=None,
        return_state=False,
    ):
        """Continues prompts, with the sampler given to `compile`.

        With a deterministic sampler a row's answer depends on that row alone: not on the rows
        beside it, on padding, or on `max_length`.

        Args:
            inputs: a str; a list, tuple or array of str; a dict of `token_ids` int [B, T] and,
                if rows are padded, `padding_mask` [B, T]; or a `tf.data.Dataset` of batches of
                any of these.
            max_length: int, how many tokens a row may have in all, its prompt included; what
                `state` holds does not count. With neither limit: the width of `token_ids` for a
                dict, else the preprocessor's `sequence_length` for the total, or for the new tokens
                of a prompt that is longer than it.
            stop_token_ids: "auto" for the tokenizer's `<eos>` and `<end_of_turn>`, a sequence of
                ids, or None to always use up the limit.
            strip_prompt: bool, whether to return the new text alone.
            max_new_tokens: int, how many tokens each row may get, instead of `max_length`.
            stop: str or sequence of str that end a row, too; the text ends before them.
            num_return_sequences: int, how many continuations each prompt gets, one after the
                other in what is returned. The prompt is read once.
            state: `RGemmaState` that the prompts go on from, without a start token; they may be
                empty. It stays as it is.
            return_state: bool, whether to return an `RGemmaState` beside the text.

        Returns:
            A str for a str, a list of str for several, a dict of arrays `token_ids` and
            `padding_mask` (rows begin at column 0) for a dict. With `return_state` a pair of that
            and the state after it, a stop string included.

        Raises:
            ValueError: no prompts, an empty prompt without a start token, ids outside of the
                vocabulary, a mask of another shape, a limit that is negative, shorter than a
                prompt or out of reach, or both limits; a state of another model, or of another
                number of rows.
            TypeError: prompts that are no text.

        Example:
        ```python
        lm.generate("In the beginning", max_length=64)
        lm.generate({"token_ids": np.array([[2, 300, 301]])}, max_new_tokens=8)
        text, state = lm.generate("In the beginning", max_new_tokens=8, return_state=True)
        lm.generate(" And", state=state, stop=".")
        ```
        """
        from keras_rgemma.generation.generate import Request, generate

        request = Request.of(
            self,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            stop=stop,
            state=state,
            copies=check_count("num_return_sequences", num_return_sequences),
        )
        return generate(self, inputs, request, strip_prompt, return_state)

    def stream(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        *,
        max_new_tokens=None,
        stop=None,
        state=None,
    ):
        """Continues prompts, and gives the new text as it is made.

        The pieces joined are what `generate(..., strip_prompt=True)` returns. No piece ends with
        half a character, or with what may be the beginning of a stop string.

        Args:
            inputs: as of `generate`, a single batch.
            max_length, stop_token_ids, max_new_tokens, stop, state: as of `generate`.

        Returns:
            An iterator of str for a str, of lists of B str for several prompts, of dicts of
            arrays for a dict. Its attribute `state` is the `RGemmaState` after what it has given
            so far; `close()` ends it. Nothing is computed between two pieces.

        Raises:
            ValueError: a sampler that does not write token by token (beam, contrastive), and as
                `generate`.

        Example:
        ```python
        for piece in lm.stream("In the beginning", max_new_tokens=64):
            print(piece, end="", flush=True)
        ```
        """
        from keras_rgemma.generation.generate import Request
        from keras_rgemma.generation.stream import stream

        request = Request.of(
            self,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            stop=stop,
            state=state,
        )
        return stream(self, inputs, request)

    def prefill(self, inputs, state=None, chunk_size=2048):
        """Reads text of any length into a state of fixed size.

        Args:
            inputs: a str; a list of str, a batch; token ids as a list, an array [T] or [B, T] or a
                dict as of `generate`; or an iterator of the pieces of one text (such as an open
                file), each a str or the ids of a row. Each str is tokenized for itself, so a word
                should not be cut between two of them. The start token comes before text, once.
            state: `RGemmaState` to go on from, which stays as it is; None for the beginning.
            chunk_size: int, how many tokens of a row are read at a time. The memory that reading
                needs grows with it, and not with the text.

        Returns:
            `RGemmaState` of all the text.

        Raises:
            ValueError: no token at all, ids outside of the vocabulary, a mask of another shape; a
                state of another model, or of another number of rows.

        Example:
        ```python
        state = lm.prefill("In the beginning God created")
        state = lm.prefill([330, 331], state=state)
        lm.generate("", state=state, max_new_tokens=8)
        ```
        """
        from keras_rgemma.generation.prefill import prefill

        return prefill(self, inputs, state, check_count("chunk_size", chunk_size))

    def chat(self, history=(), max_new_tokens=None, stop=None):
        """Begins a conversation in the format that instruction-tuned models are trained with.

        Args:
            history, max_new_tokens, stop: see `keras_rgemma.generation.chat.Chat`.

        Returns:
            `keras_rgemma.generation.chat.Chat`.

        Raises:
            ValueError: no preprocessor, or a vocabulary without `<start_of_turn>` and
                `<end_of_turn>`.

        Example:
        ```python
        chat = lm.chat()
        chat.send("What is a lighthouse?")
        for piece in chat.stream("And a river?"):
            print(piece, end="", flush=True)
        ```
        """
        from keras_rgemma.generation.chat import Chat

        return Chat(self, history, max_new_tokens, stop)

    def load_chat(self, path, max_new_tokens=None, stop=None):
        """Goes on with a conversation that `Chat.save` wrote, on whatever backend.

        Args:
            path: str or path.
            max_new_tokens, stop: as of `chat`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file, damaged, or a conversation with another model.
        """
        from keras_rgemma.generation.chat import Chat

        return Chat.load(self, path, max_new_tokens=max_new_tokens, stop=stop)

    def text_preprocessor(self, text):
        """The preprocessor, checked to fit the model.

        Args:
            text: what it is wanted for, named in the error.

        Raises:
            ValueError: there is none, or its tokenizer belongs to another model.
        """
        if self.preprocessor is None:
            raise ValueError(
                "A model without a preprocessor takes a dict of `token_ids` and `padding_mask`. "
                f"Received text: {text!r}. Attach a preprocessor, or tokenize it first."
            )
        check_vocabularies(self.preprocessor, self.backbone.vocabulary_size)
        return self.preprocessor

    # === Scoring ===

    def score(
        self,
        token_ids,
        padding_mask=None,
        scoring_mode="logits",
        layer_intercept_fn=None,
        target_ids=None,
        *,
        state=None,
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
            state: `RGemmaState` that the rows go on from; their tokens then come first, pads last.
                Activations have one column more in front, of the token that the state carries.

        Returns:
            Float [B, T, V] for "logits", float [B, T] for "loss".

        Raises:
            ValueError: another `scoring_mode`, no targets for "loss", targets or a mask of
                another shape, ids outside of the vocabulary, a state of another model or of
                another number of rows.

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
        logits = self._score(ids, mask, state, layer_intercept_fn)
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

    def _score(self, ids, mask, state, layer_intercept_fn):
        """Logits [B, T, V], in one program unless activations are to be intercepted."""
        from keras_rgemma.generation import session
        from keras_rgemma.generation.programs import Programs, padded_length

        self.sync_weights()
        consumed, first = (), 0
        if state is not None:
            consumed, first = session.consumed_by(self, state), 1
            ids, mask = session.columns_behind(state, ids, mask)
        if layer_intercept_fn:
            rows = map(ops.convert_to_tensor, (ids, mask))
            return self._logits(*rows, consumed, layer_intercept_fn)[:, first:]
        if self._scoring_programs is None or not self._scoring_programs.are_for(self):
            self._scoring_programs = Programs(self)
        length = ids.shape[1]
        pads = [(0, 0), (0, padded_length(length) - length)]
        rows = (ops.convert_to_tensor(np.pad(x, pads)) for x in (ids, mask))
        logits = self._scoring_programs.compiled(self._logits)(*rows, consumed)
        return logits[:, first:length]

    def _logits(self, token_ids, padding_mask, consumed=(), layer_intercept_fn=None):
        if consumed:
            positions = continued_positions(padding_mask, consumed.num_tokens)
            layers = consumed.layers
        else:
            positions, layers = document_positions(padding_mask), None
        hidden = self.backbone.call_layers(
            token_ids, positions, layers, layer_intercept_fn=layer_intercept_fn
        )
        return self.compute_logits(hidden)


def _taken(kwargs, names):
    """Removes arguments from a dict and returns them as another."""
    return {name: kwargs.pop(name) for name in list(kwargs) if name in names}


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
