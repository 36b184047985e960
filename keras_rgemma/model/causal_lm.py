"""The causal language model: logits, text generation, scoring."""

import dataclasses
import functools
import pathlib

import keras
import keras_hub

from keras_rgemma.checkpoints import keras_preset
from keras_rgemma.checkpoints.export import export
from keras_rgemma.checkpoints.folder import open_checkpoint, tokenizer_file
from keras_rgemma.checkpoints.hub import CONFIG, WEIGHTS
from keras_rgemma.checkpoints.presets import Presets, has_tokenizer, resolve
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import preset_folder
from keras_rgemma.generation.model import BoundModel
from keras_rgemma.generation.programs import GenerationPrograms
from keras_rgemma.lora import peft
from keras_rgemma.model import calibration
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.model.samplers import (
    compares_hidden_states,
    is_stepwise,
    read_sampler,
    without_softmax,
)
from keras_rgemma.model.scoring import Scoring
from keras_rgemma.model.text_generation import TextGeneration
from keras_rgemma.model.training import Training
from keras_rgemma.shapes import check_keywords
from keras_rgemma.state import records
from keras_rgemma.state.fingerprint import fingerprint

_SIZES = {field.name for field in dataclasses.fields(RGemmaConfig)}


class CausalLM(TextGeneration, Scoring, Training, keras_hub.models.CausalLM):
    """KerasHub's causal language model with this package's generation, scoring and training.

    It has the name of KerasHub's class, which KerasHub writes into presets as the model's task.
    """


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaCausalLM(CausalLM):
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
        peft.load(self.backbone, path)

    # === What generation needs of a model ===

    def initial_state(self, batch_size):
        """The `ModelState` of `batch_size` rows that have consumed nothing."""
        return self.backbone.initial_state(batch_size)

    def state_specification(self):
        """The `ModelState` with a `keras.KerasTensor` in place of each array."""
        return records.specification(self.backbone.config, self.backbone.compute_dtype)

    def fingerprint(self):
        """The `Fingerprint` (of `keras_rgemma.state`) of this architecture with these weights."""
        return fingerprint(self.backbone)

    def step(self, token_ids, padding_mask, state, has_begun=False):
        """Consumes more tokens of each row: see `RGemmaBackbone.step`."""
        return self.backbone.step(token_ids, padding_mask, state, has_begun)

    def bound(self, bind):
        """Returns the `BoundModel` of other parts, see `layers.binding.unchanged`."""
        logits = functools.partial(bind(self.backbone.token_embedding), reverse=True)
        return BoundModel(self.backbone.bound_step(bind), logits)

    def compute_logits(self, hidden):
        """Logits [..., V] of final hidden states [..., D], soft cap included."""
        return self.backbone.token_embedding(hidden, reverse=True)

    def make_generate_function(self):
        """The compiled programs of `generate`, made anew when weights or settings are others."""
        self.sync_weights()
        sampler = self.sampler = read_sampler(self.sampler, self.backbone.vocabulary_size)
        if self.generate_function is None or not self.generate_function.are_for(self, sampler):
            self.generate_function = GenerationPrograms(
                self,
                sampler,
                fast_sampler=without_softmax(sampler),
                hidden_dim=self.backbone.hidden_dim if compares_hidden_states(sampler) else None,
                is_stepwise=is_stepwise(sampler),
            )
        return self.generate_function

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


def _taken(kwargs, names):
    """Removes arguments from a dict and returns them as another."""
    return {name: kwargs.pop(name) for name in list(kwargs) if name in names}


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
