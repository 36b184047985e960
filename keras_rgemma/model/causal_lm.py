"""Defines the causal language model: logits, text generation, scoring, training."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import keras_hub

from keras_rgemma.checkpoints.export import export
from keras_rgemma.checkpoints.presets import Presets, resolve_adapter
from keras_rgemma.files import preset_folder
from keras_rgemma.generation.model import BoundModel
from keras_rgemma.generation.programs import GenerationPrograms
from keras_rgemma.keras_internals.parameters import normal_tensors
from keras_rgemma.layers.binding import unchanged
from keras_rgemma.lora import peft
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.keras_model import KerasModel
from keras_rgemma.model.optimizer_state import OptimizerState
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.model.preset_loading import PresetLoading, check_vocabularies
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
from keras_rgemma.sharding.host import writes
from keras_rgemma.state import records
from keras_rgemma.state.fingerprint import Fingerprint, fingerprint, fingerprint_later
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import Bind, StrPath, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class CausalLM(
    PresetLoading,
    TextGeneration,
    Scoring,
    OptimizerState,
    Training,
    KerasModel,
    keras_hub.models.CausalLM,
):
    """KerasHub's causal language model with this package's loading, generation, scoring, training.

    The class has the name of KerasHub's, which KerasHub writes into presets as the model's task.
    """


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaCausalLM(CausalLM):
    """Predicts next tokens with RecurrentGemma: `generate`, `fit`, `score`.

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
    keras_rgemma.RGemmaCausalLM.presets
    ```
    """

    backbone_cls = RGemmaBackbone
    preprocessor_cls = RGemmaCausalLMPreprocessor
    presets = Presets()
    """dict of the built-in presets by name, each a dict with `description`, `parameter_count`,
    `weights`."""

    def __init__(
        self,
        backbone: RGemmaBackbone,
        preprocessor: RGemmaCausalLMPreprocessor | None = None,
        **kwargs: Any,
    ) -> None:
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
        with normal_tensors():
            super().__init__(inputs=backbone.input, outputs=outputs, **kwargs)
        if not hasattr(self, "sampler"):  # with `compile=False`
            self.sampler = keras_hub.samplers.GreedySampler()
            self.generate_function = None

    @normal_tensors()
    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        sampler: str | keras_hub.samplers.Sampler = "greedy",
        **kwargs: Any,
    ) -> None:
        """Configures training and generation, as `keras_hub.models.CausalLM.compile` does.

        Args:
            optimizer: "auto" for `Adam(2e-5)`, or an optimizer as of `keras.Model.compile`.
            loss: "auto" for sparse categorical cross-entropy. The logits are then computed for
                some tokens at a time: at V = 256,000 all logits would take more memory than the
                rest of a step. Any other loss gets all logits, [B, T, V].
            weighted_metrics: "auto" for sparse categorical accuracy, or None. With others (or with
                `metrics` or `loss_weights`) the loss is computed from all logits, too.
            sampler: name or instance from `keras_hub.samplers`.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: `generate` cannot use the sampler.

        Example:
        ```python
        lm.compile(keras.optimizers.Adam(1e-4), sampler="top_p")
        lm.compile(sampler=keras_hub.samplers.TopKSampler(k=5, temperature=0.7))
        ```
        """
        sampler = read_sampler(sampler, self.backbone.vocabulary_size)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            weighted_metrics=weighted_metrics,
            sampler=sampler,
            **kwargs,
        )

    @writes
    def save_to_preset(self, preset_dir: StrPath, max_shard_size: float | None = 10) -> None:
        """Writes the model to a preset folder: see `RGemmaBackbone.save_to_preset`.

        Example:
        ```python
        lm.save_to_preset("my_preset")
        lm = keras_rgemma.RGemmaCausalLM.from_preset("my_preset")
        ```
        """
        with preset_folder(preset_dir) as folder:
            super().save_to_preset(folder, max_shard_size)

    @writes
    def export_to_transformers(
        self, path: StrPath, dtype: str | None = None, overwrite: bool = False
    ) -> None:
        """Writes the model to a folder that Hugging Face's transformers loads.

        The folder holds the weights (with LoRA merged, if it is enabled), the config and, if there
        is a preprocessor, the tokenizer and the tokens that end a text. The folder gets its name
        when it is complete: a call that is stopped halfway leaves no folder that looks complete.

        Args:
            path: str or path of a folder, which must be empty or new.
            dtype: "float32", "float16" or "bfloat16"; None for the dtype of the variables.
            overwrite: bool, whether to replace an existing folder.

        Raises:
            FileExistsError: the folder is not empty.
            ValueError: the model is quantized, or transformers cannot express its architecture.

        Example:
        ```python
        lm.export_to_transformers("my_model")
        transformers.AutoModelForCausalLM.from_pretrained("my_model")
        ```
        """
        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        export(self.backbone, tokenizer, path, "transformers", dtype, overwrite)

    def get_quantization_layer_structure(self, mode: str | None) -> dict[str, list[Any]] | None:
        """Returns the layers for GPTQ and AWQ in order, a dict; None for other modes."""
        return self.backbone.get_quantization_layer_structure(mode)

    @writes
    def export_to_peft(
        self, path: StrPath, base_model: str | None = None, overwrite: bool = False
    ) -> None:
        """Writes A and B of LoRA to an adapter that Hugging Face PEFT loads.

        The adapter fits the original checkpoint, or a folder that `export_to_transformers` wrote
        before `enable_lora` (later calls merge LoRA). PEFT reads the gates of the recurrence from
        version 0.19.1 on.

        Args:
            path: str or path of a folder, which must be empty or new.
            base_model: str, the name of the base in the adapter, such as a repository's name.
            overwrite: bool, whether to replace an existing folder.

        Raises:
            FileExistsError: the folder is not empty.
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

    def load_from_peft(
        self, path: StrPath, *, revision: str | None = None, subfolder: str | None = None
    ) -> None:
        """Loads an adapter of Hugging Face PEFT, and enables LoRA on its layers.

        In PEFT each block of a gate has its own matrix B; here all blocks share one B. Where blocks
        differ in B, the gate gets a rank H times as large, which is exact.

        Args:
            path: str or path of a folder with `adapter_config.json`; or the handle of one on a
                hub, `hf://OWNER/NAME`.
            revision: str, see `RGemmaBackbone.from_preset`.
            subfolder: str, the folder of the adapter inside. PEFT writes an adapter that is not
                called "default" into a folder of its name.

        Raises:
            FileNotFoundError: there is no such folder. For a hub see
                `RGemmaBackbone.from_preset`, too.
            ValueError: the adapter is no LoRA, has parts that A and B cannot express (DoRA, trained
                biases, ...), has other layers or shapes than this model, or is broken; LoRA of
                other ranks or on other layers is enabled (call `backbone.disable_lora()` first).

        Example:
        ```python
        lm.backbone.enable_lora(8)
        lm.export_to_peft("adapter")
        other = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
        other.load_from_peft("adapter")
        ```
        """
        peft.load(self.backbone, resolve_adapter(path, revision, subfolder))

    # === Methods of `generation.model.GenerativeModel` ===

    def distribution_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context with the `keras.distribution` that the backbone was made in.

        Raises:
            ValueError: another distribution is in force.
        """
        return self.backbone.distribution_scope()

    def initial_state(self, batch_size: int) -> ModelState:
        """Returns the `ModelState` of `batch_size` rows that have consumed no token."""
        return self.backbone.initial_state(batch_size)

    def state_specification(self) -> ModelState:
        """Returns the `ModelState` with a `keras.KerasTensor` in place of each array."""
        return records.specification(self.backbone.config, self.backbone.compute_dtype)

    def fingerprint(self) -> Fingerprint:
        """Returns the `state.fingerprint.Fingerprint` of the architecture and the weights."""
        return fingerprint(self.backbone)

    def fingerprint_later(self) -> Callable[[], Fingerprint]:
        """Returns a function that returns the fingerprint of the weights as they are now."""
        return fingerprint_later(self.backbone)

    def step(
        self,
        token_ids: Tensor,
        padding_mask: Tensor | None,
        state: ModelState,
        has_begun: bool = False,
    ) -> tuple[Tensor, ModelState]:
        """Consumes more tokens of each row: see `RGemmaBackbone.step`."""
        return self.backbone.step(token_ids, padding_mask, state, has_begun)

    def bound(
        self, bind: Bind, compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = unchanged
    ) -> BoundModel:
        """Returns the `BoundModel` of bound parts, see `generation.model.GenerativeModel`."""
        logits = functools.partial(bind(self.backbone.token_embedding), reverse=True)
        return BoundModel(self.backbone.bound_step(bind, compiled), compiled(logits))

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits [..., V] of final hidden states [..., D], soft cap included."""
        return self.backbone.token_embedding(hidden, reverse=True)

    def make_generate_function(self) -> GenerationPrograms:
        """Returns the programs of `generate`, made anew after weights or settings were replaced."""
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

    def text_preprocessor(self, text: object) -> RGemmaCausalLMPreprocessor:
        """Returns the preprocessor, and checks that it fits the model.

        Args:
            text: str, the text to tokenize, for the error.

        Raises:
            ValueError: there is no preprocessor, or its tokenizer belongs to another model.
        """
        if self.preprocessor is None:
            raise ValueError(
                "A model without a preprocessor takes a dict of `token_ids` and `padding_mask`. "
                f"Received text: {text!r}. Attach a preprocessor, or tokenize it first."
            )
        check_vocabularies(self.preprocessor, self.backbone.vocabulary_size)
        return self.preprocessor
