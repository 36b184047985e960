"""Defines the LoRA methods of a backbone."""

from collections.abc import Iterable
from typing import Any

from keras_rgemma.lora import adapters, files
from keras_rgemma.lora import backbone as lora
from keras_rgemma.sharding.host import reads, writes
from keras_rgemma.types import StrPath


class BackboneLoRA:
    """Mixin for `RGemmaBackbone` that enables, merges, saves and loads LoRA."""

    def default_lora_layer_names(self) -> list[str]:
        """Returns the names of all linear layers of the blocks, for `enable_lora`.

        Example:
        ```python
        names = lm.backbone.default_lora_layer_names()
        lm.backbone.enable_lora(8, [name for name in names if name != "a_gate"])
        ```
        """
        return sorted({layer.name for layer in lora.linear_layers(self).values()})

    def enable_lora(
        self,
        rank: int,
        target_layer_names: str | Iterable[str] | None = None,
        *,
        alpha: float | None = None,
    ) -> None:
        """Freezes the model and adds trainable matrices of low rank to linear layers.

        LoRA (arXiv 2106.09685, section 4.1): such a layer computes
        `x W + (alpha / rank) (x A) B`; A and B are trained, in float32. B is zero at first, so the
        outputs do not change. On a model quantized to int8 or int4 this is QLoRA. Call
        `compile` before the next `fit` if the model has been trained already.

        Args:
            rank: int.
            target_layer_names: str or sequence of str: names of layers ("ffw_up"), paths
                ("block_0/mlp_block/ffw_up") or regular expressions that match one as a whole
                ("block_[0-7]/.*"). None: every linear layer of recurrent, attention and MLP blocks,
                the gates of the recurrence included.
            alpha: float; None for `rank`.

        Raises:
            ValueError: no layer has such a name, rank or alpha is not positive, LoRA is enabled
                already, or a layer is quantized by GPTQ, AWQ or to float8.

        Example:
        ```python
        lm.backbone.enable_lora(8, alpha=16)
        lm.fit(["In the beginning", "was the word"], epochs=1)
        lm.backbone.save_lora_weights("words.lora.h5")
        ```
        """
        lora.enable(self, rank, target_layer_names, alpha)

    def disable_lora(self) -> None:
        """Removes LoRA with its trained values. Every weight is trainable again.

        Raises:
            ValueError: LoRA is not enabled.

        Example:
        ```python
        lm.backbone.enable_lora(8)
        lm.backbone.disable_lora()
        ```
        """
        lora.disable(self)

    def merge_lora(self) -> None:
        """Adds LoRA's product A B to the weights, and removes LoRA.

        Outputs stay the same up to the rounding of the weights' dtype; the weights of an int8 or
        int4 layer are rounded anew, which can change its outputs. Every weight is trainable again.

        Raises:
            ValueError: LoRA is not enabled.

        Example:
        ```python
        lm.backbone.enable_lora(8)
        lm.fit(["In the beginning"])
        lm.backbone.merge_lora()
        ```
        """
        lora.merge(self)

    @writes
    def save_lora_weights(self, filepath: StrPath) -> None:
        """Writes A and B of LoRA to an adapter file, without the base.

        The file (HDF5) is keyed by the paths of the layers and carries the rank and alpha of each,
        and a fingerprint of the base.

        Args:
            filepath: str or path that ends in ".lora.h5".

        Raises:
            ValueError: the path ends otherwise, or LoRA is not enabled.
            OSError: the file cannot be written.

        Example:
        ```python
        lm.backbone.enable_lora(8)
        lm.backbone.save_lora_weights("words.lora.h5")
        ```
        """
        adapters.save(self, filepath)

    def load_lora_weights(self, filepath: StrPath) -> None:
        """Loads an adapter file, and enables LoRA on its layers.

        If LoRA is enabled already, with the same ranks on the same layers, the file replaces A and
        B. An adapter trained on a quantized base also fits that base in full precision, and the
        other way round.

        Args:
            filepath: str or path.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no adapter, is damaged, or belongs to another model; LoRA of
                other ranks or on other layers is enabled (call `disable_lora()` first).

        Example:
        ```python
        lm.backbone.enable_lora(8)
        lm.backbone.save_lora_weights("words.lora.h5")
        other = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
        other.backbone.load_lora_weights("words.lora.h5")
        ```
        """
        adapters.load(self, filepath)

    @reads
    def load_weights(self, filepath: StrPath, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Loads weights, as `keras.Model.load_weights` does.

        Args:
            filepath: str or path.
            skip_mismatch: bool, whether weights of other shapes are skipped.
            **kwargs: of `keras.Model.load_weights`.

        Raises:
            ValueError: the file has LoRA of another rank (no weight has changed), or weights of
                another model (A and B have not changed).

        Example:
        ```python
        backbone.save_weights("backbone.weights.h5")
        backbone.load_weights("backbone.weights.h5")
        ```
        """
        with files.keeping_lora(self, filepath, skip_mismatch):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    def load_own_variables(self, store: Any) -> None:
        files.prepare(self, store)  # before Keras loads the layers
        super().load_own_variables(store)
