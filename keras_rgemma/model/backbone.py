"""Defines the RecurrentGemma network: token ids to hidden states."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import keras_hub

from keras_rgemma.backend import start_backend
from keras_rgemma.checkpoints import keras_preset
from keras_rgemma.checkpoints.export import export
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.checkpoints.hub import CONFIG, WEIGHTS
from keras_rgemma.checkpoints.presets import Presets, resolve_model
from keras_rgemma.checkpoints.rounding import check_mode
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import preset_folder
from keras_rgemma.keras_internals.layers import layers_of, set_own_policy
from keras_rgemma.keras_internals.parameters import normal_tensors
from keras_rgemma.layers.document_places import DocumentPlaces
from keras_rgemma.layers.document_positions import DocumentPositions
from keras_rgemma.layers.embedding import ReversibleEmbedding
from keras_rgemma.layers.lora import CALIBRATED
from keras_rgemma.layers.residual_block import residual_blocks
from keras_rgemma.layers.rms_norm import RMSNorm
from keras_rgemma.layers.rounded import Rounded
from keras_rgemma.lora import peft
from keras_rgemma.lora.structure import restore, structure
from keras_rgemma.model import calibration
from keras_rgemma.model.backbone_lora import BackboneLoRA
from keras_rgemma.model.backbone_state import BackboneState
from keras_rgemma.model.distributed import Distributed
from keras_rgemma.model.keras_model import KerasModel
from keras_rgemma.shapes import check_keywords
from keras_rgemma.sharding.host import writes
from keras_rgemma.types import StrPath


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaBackbone(
    BackboneLoRA, BackboneState, Distributed, KerasModel, keras_hub.models.Backbone
):
    """Computes RecurrentGemma: gated linear recurrences and local attention.

    Griffin (arXiv 2402.19427) and RecurrentGemma (arXiv 2404.07839). The memory for the text before
    a token does not grow with the text.

    Args:
        vocabulary_size: int, V.
        num_layers: int.
        hidden_dim: int, D.
        intermediate_dim: int, M, the width of ONE branch of the gated MLP.
        num_query_heads: int, H; also the number of blocks of the recurrence's gates.
        num_key_value_heads: int, divides H.
        head_dim: int, K. None: `hidden_dim // num_query_heads`.
        lru_dim: int, L. None: `hidden_dim`.
        block_types: sequence of "recurrent" and "attention", cycled to `num_layers`.
        sliding_window_size: int, W. A token attends to itself and the W before it.
        conv_width: int, taps of the recurrent block's convolution.
        final_logit_soft_cap: float or None, bounds the logits (applied by `token_embedding` with
            `reverse=True`, and there only).
        scale_embeddings: bool, whether embeddings are multiplied by sqrt(D).
        rope_max_wavelength: float.
        rope_fraction: float, the share of a head's features that RoPE rotates.
        activation: str, of the MLP and of the recurrent block's gate branch: "gelu_tanh", "gelu",
            "silu", "relu" or another name of `config.ACTIVATIONS`.
        layer_norm_epsilon: float.
        dropout: float, on the output of each temporal block and MLP, in training.
        gradient_checkpointing: bool, whether training recomputes each layer's activations in the
            backward pass.
        dtype: str or `keras.DTypePolicy`, of weights and computation.
        **kwargs: `name` and `trainable`, as for any `keras.Model`.

    Call arguments:
        inputs: dict of `token_ids`, int32 [B, T], and `padding_mask`, int or bool [B, T]. In the
            mask 0 is a pad, on either side, and a positive number is the document of a token: a
            row packed with several documents counts 1, 2, 3, ... and no document sees another. A
            plain 0/1 mask means one document.

    Returns:
        The final hidden states, compute dtype [B, T, D]; without meaning (but finite) at pads.

    Raises:
        ValueError: a size is not positive, heads do not divide widths, a block type is unknown, the
            backend is not supported, or the mesh of the `keras.distribution` in force does not
            divide a size.
        TypeError: an argument is unknown.

    Example:
    ```python
    backbone = keras_rgemma.RGemmaBackbone(
        vocabulary_size=256, num_layers=3, hidden_dim=16, intermediate_dim=48, num_query_heads=2
    )
    hidden = backbone({
        "token_ids": np.array([[2, 5, 6, 0]]), "padding_mask": np.array([[1, 1, 1, 0]])
    })  # [1, 4, 16]
    keras_rgemma.RGemmaBackbone.presets
    ```
    """

    presets = Presets()
    """dict of the built-in presets by name, each a dict with `description`, `parameter_count`,
    `weights`."""

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        intermediate_dim: int,
        num_query_heads: int,
        num_key_value_heads: int = 1,
        head_dim: int | None = None,
        lru_dim: int | None = None,
        block_types: Sequence[str] = ("recurrent", "recurrent", "attention"),
        sliding_window_size: int = 2048,
        conv_width: int = 4,
        final_logit_soft_cap: float | None = 30.0,
        scale_embeddings: bool = True,
        rope_max_wavelength: float = 10_000,
        rope_fraction: float = 0.5,
        activation: str = "gelu_tanh",
        layer_norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ) -> None:
        start_backend()
        check_keywords(kwargs, ("name", "trainable"), type(self).__name__)
        config = RGemmaConfig(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            num_query_heads=num_query_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            lru_dim=lru_dim,
            block_types=block_types,
            sliding_window_size=sliding_window_size,
            conv_width=conv_width,
            final_logit_soft_cap=final_logit_soft_cap,
            scale_embeddings=scale_embeddings,
            rope_max_wavelength=rope_max_wavelength,
            rope_fraction=rope_fraction,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            dropout=dropout,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.config = config
        self.remember_distribution()

        with normal_tensors():
            self._make_layers(config, dtype)
            self._make_graph(dtype, **kwargs)

        # === Config ===
        _resolve_policies(layers_of(self))
        for name, value in config.to_dict().items():
            setattr(self, name, value)

    def _make_layers(self, config: RGemmaConfig, dtype: str | keras.DTypePolicy | None) -> None:
        with keras.RematScope(mode=None):  # JAX would take `reverse` for a tensor there
            self.token_embedding = ReversibleEmbedding(
                input_dim=config.vocabulary_size,
                output_dim=config.hidden_dim,
                embeddings_initializer=keras.initializers.RandomNormal(
                    stddev=config.hidden_dim**-0.5
                ),
                logit_soft_cap=config.final_logit_soft_cap,
                dtype=dtype,
                name="token_embedding",
            )
        self.transformer_layers = residual_blocks(config, dtype)
        self.final_norm = RMSNorm(config.layer_norm_epsilon, dtype=dtype, name="final_norm")

    def _make_graph(self, dtype: str | keras.DTypePolicy | None, **kwargs: Any) -> None:
        inputs = {
            "token_ids": keras.Input(shape=(None,), dtype="int32", name="token_ids"),
            "padding_mask": keras.Input(shape=(None,), dtype="int32", name="padding_mask"),
        }
        positions = DocumentPositions(dtype=dtype, name="document_positions")(
            inputs["padding_mask"]
        )
        places = DocumentPlaces(rope=self.rope, dtype=dtype, name="document_places")(positions)
        outputs = self.call_layers(inputs["token_ids"], places)
        super().__init__(inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)

    @classmethod
    def from_preset(
        cls,
        preset: StrPath,
        load_weights: bool = True,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        quantize: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Creates the backbone from a preset.

        Args:
            preset: str: a name from `presets`; a folder saved by `save_to_preset`, a folder of
                Hugging Face, an Orbax folder or a `.pt` file of DeepMind; an adapter of PEFT, which
                goes onto its base as LoRA; or the handle of any of these on a hub,
                `hf://OWNER/NAME`, `kaggle://OWNER/MODEL/FRAMEWORK/VARIANT` or
                `modelscope://OWNER/NAME`. DeepMind's formats hold weights alone: settings without
                an effect on shapes (`sliding_window_size`, `final_logit_soft_cap`,
                `scale_embeddings`) have RecurrentGemma's values unless they are passed.
            load_weights: bool; False for random weights.
            revision: str, the branch, tag, commit or (on Kaggle) number of the version to take
                from a hub; None for the newest.
            subfolder: str, the folder of the model inside of the preset, such as "checkpoint-500".
            quantize: None, "int8" or "int4", to which the weights are rounded as by the method
                `quantize`: each as soon as it is read, so that the model needs no more memory than
                after it. Layers that a subclass adds stay as they are.
            **kwargs: `dtype`, and arguments of the constructor.

        Raises:
            ValueError: the preset does not exist, has no weights, or its weights are broken.
            PermissionError: the repository is gated or private; the message says what to do.
            FileNotFoundError: the hub has no such repository or revision.
            ConnectionError: the hub cannot be reached, or the connection was lost.

        Example:
        ```python
        backbone = keras_rgemma.RGemmaBackbone.from_preset("rgemma_tiny_en")
        ```
        """
        part = WEIGHTS if load_weights else CONFIG
        folder, adapter = resolve_model(preset, part, revision, subfolder)
        backbone = cls.from_folder(folder, load_weights, quantize, **kwargs)
        if adapter and load_weights:
            peft.load(backbone, adapter)
        return backbone

    @classmethod
    def from_folder(
        cls, folder: str, load_weights: bool = True, quantize: str | None = None, **kwargs: Any
    ) -> Self:
        """Creates the backbone from a folder or handle of `resolve_model`; see `from_preset`."""
        check_mode(quantize)
        checkpoint = open_checkpoint(folder)
        if checkpoint:
            return checkpoint.backbone(cls, load_weights, quantize, **kwargs)
        return keras_preset.load(super().from_preset, folder, load_weights, quantize, **kwargs)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        from_config, config = super().from_config, dict(config)
        lora = config.pop("lora", None)
        backbone = keras_preset.build_with_zeros(config, from_config)
        if lora is not None:
            if keras_preset.weights_follow():
                restore(backbone, lora, keras_preset.check_lora_size, a_initializer="zeros")
            else:
                restore(backbone, lora)
        return backbone

    @writes
    def save_to_preset(self, preset_dir: StrPath, max_shard_size: float | None = 10) -> None:
        """Writes the model to a preset folder, as KerasHub does.

        Enabled LoRA is loaded as LoRA: the same A, B, ranks and alphas, and the same trained
        weights. Call `merge_lora()` before for a preset of plain weights.

        A new folder gets its name when it is complete: a call that is stopped halfway leaves no
        folder that looks complete. Files in an existing folder are replaced one by one, and weights
        of the model before are deleted.

        Args:
            preset_dir: str or path.
            max_shard_size: int or float, GiB of a file of weights; None for no limit.

        Example:
        ```python
        backbone.save_to_preset("my_backbone")
        backbone = keras_rgemma.RGemmaBackbone.from_preset("my_backbone")
        ```
        """
        with preset_folder(preset_dir) as folder:
            super().save_to_preset(folder, max_shard_size)

    @writes
    def export_to_transformers(
        self, path: StrPath, dtype: str | None = None, overwrite: bool = False
    ) -> None:
        """Writes weights and config, as `RGemmaCausalLM.export_to_transformers` does.

        Example:
        ```python
        backbone.export_to_transformers("my_network")
        transformers.AutoModel.from_pretrained("my_network")
        ```
        """
        export(self, None, path, "transformers", dtype, overwrite)

    def get_quantization_layer_structure(self, mode: str | None) -> dict[str, list[Any]] | None:
        """Returns the layers for GPTQ and AWQ in order, a dict; None for other modes."""
        return calibration.structure(self) if mode in CALIBRATED else None

    def get_config(self) -> dict[str, Any]:
        # The config of KerasHub has a map of policies without the layers that are not quantized,
        # which would then get the global policy.
        policy = self.dtype_policy
        quantized = {
            layer.path: layer.dtype_policy
            for layer in layers_of(self, include_self=False)
            if getattr(layer, "quantization_mode", None)
        }
        maps = keras.dtype_policies.DTypePolicyMap
        if isinstance(policy, maps):
            policy = maps(policy.default_policy, {**policy, **quantized})
        elif quantized:
            policy = maps(policy, quantized)
        lora = structure(self)
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(policy),
            **self.config.to_dict(),
            **({"lora": lora} if lora else {}),
        }


def _resolve_policies(layers: Iterable[keras.Layer]) -> None:
    """Sets the policy of each layer with a matrix to its entry in a map of policies.

    With the whole map, Keras quantizes no layer, and saves a quantized one as one that is not.
    Also, an int4 embedding made from a policy rounds its inputs, unlike an embedding after
    `quantize("int4")`.
    """
    for layer in layers:
        policy = layer.dtype_policy
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap) and isinstance(layer, Rounded):
            set_own_policy(layer, policy[layer.path])
            if layer.quantization_mode == "int4":
                layer.inputs_quantizer = None
