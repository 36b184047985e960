"""Fits the models of KerasHub to PyTorch's parameters, `keras.RematScope` and quantization."""

from collections.abc import Callable
from typing import Any

from keras_rgemma.keras_internals.layers import small_collections
from keras_rgemma.keras_internals.parameters import ParametersOfVariables, normal_tensors
from keras_rgemma.model import calibration
from keras_rgemma.model.quantizable import quantizable
from keras_rgemma.sharding.host import writes
from keras_rgemma.types import StrPath


class KerasModel(ParametersOfVariables):
    """Mixin for a model of KerasHub; list it before the class of KerasHub.

    Its parameters on PyTorch are its variables. In `keras.RematScope` its layers recompute their
    activations one by one: a whole model that is recomputed at once saves no memory.
    """

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        return layer_call

    @writes
    def save(self, filepath: StrPath, *args: Any, **kwargs: Any) -> None:
        """Writes the model into a file, as `keras.Model.save` does.

        Example:
        ```python
        lm.save("model.keras")
        lm = keras.saving.load_model("model.keras")
        ```
        """
        super().save(filepath, *args, **kwargs)

    @writes
    def save_weights(self, filepath: StrPath, *args: Any, **kwargs: Any) -> None:
        """Writes the weights into a file, as `keras.Model.save_weights` does.

        Example:
        ```python
        backbone.save_weights("backbone.weights.h5")
        ```
        """
        super().save_weights(filepath, *args, **kwargs)

    def quantize(self, mode: str | None = None, config: Any = None, **kwargs: Any) -> None:
        """Rounds the weights, as `keras.Model.quantize` does.

        GPTQ and AWQ leave embeddings and RG-LRU gates as they are.

        Args:
            mode: str: "int8", "int4", "float8", "gptq" or "awq".
            config: the `keras.quantizers` configuration of the mode; GPTQ and AWQ need theirs, such
                as `keras.quantizers.GPTQConfig(texts, lm.preprocessor.tokenizer)`.
            **kwargs: `filters`, the choice of layers.

        Raises:
            ValueError: a layer is quantized already, or LoRA is enabled for GPTQ or AWQ.

        Example:
        ```python
        lm.quantize("int8")
        lm.backbone.enable_lora(8)  # with rounded weights below: QLoRA
        ```
        """
        calibration.check(self, mode)
        kwargs["filters"] = quantizable(kwargs.get("filters"))
        with normal_tensors(), small_collections(), self.distribution_scope():
            super().quantize(mode, config=config, **kwargs)
