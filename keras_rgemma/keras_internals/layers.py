"""Reaches layers inside of layers, and the private parts of linear layers."""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras
from keras import ops
from keras.src.backend.common.variables import AutocastScope

from keras_rgemma.types import Tensor

_Layer = TypeVar("_Layer")


def layers_of(layer: keras.Layer, include_self: bool = True) -> list[keras.Layer]:
    """Lists a layer or model and all layers in it, at any depth, each once.

    Args:
        layer: `keras.Layer`.
        include_self: bool, whether the layer itself comes first.
    """
    return layer._flatten_layers(include_self=include_self)


def track_layer(owner: keras.Layer, layer: keras.Layer) -> None:
    """Lets a layer or model own another layer, which it then trains, quantizes and lists.

    Does nothing before the constructor of the owner has called the one of Keras.
    """
    if hasattr(owner, "_tracker"):
        owner._tracker.track(layer)


def variables_created_trainable(owner: keras.Layer | keras.Optimizer) -> list[keras.Variable]:
    """Lists the own variables of a layer, or the variables of an optimizer, frozen or not.

    Args:
        owner: `keras.Layer`, for its variables that were created as trainable; or
            `keras.optimizers.Optimizer`, for the variables that it was built for.
    """
    return list(owner._trainable_variables)


def remove_variables(layer: keras.Layer, names: Sequence[str]) -> None:
    """Removes variables from a built layer and sets their attributes to None.

    Args:
        layer: `keras.Layer`.
        names: sequence of str, the attributes that hold the variables.
    """
    layer._tracker.unlock()
    for name in names:
        layer._untrack_variable(getattr(layer, name))
        setattr(layer, name, None)
    layer._tracker.lock()


@contextlib.contextmanager
def small_collections() -> Iterator[None]:
    """Lets Python collect garbage only among the objects that are made inside of the block.

    Keras 3.15 collects garbage whenever a layer loses a weight, for half a second each time in a
    process with as many objects as JAX, TensorFlow and PyTorch bring.
    """
    if gc.get_freeze_count():  # somebody else's, and theirs to end
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


_STORED = {"kernel": "_kernel", "embeddings": "_embeddings"}


def stored_variable(layer: keras.Layer, name: str) -> keras.Variable | None:
    """Returns a variable of a linear layer or an embedding by its name in files; None without it.

    The properties `kernel` and `embeddings` add LoRA and unpack int4; the variables do neither.
    """
    return getattr(layer, _STORED.get(name, name), None)


def embedding_arrays(layer: keras.Layer) -> dict[str, Tensor]:
    """Returns the arrays of a quantized embedding that have a row for each token, a dict.

    The property `embeddings` of the layer unpacks int4; these arrays are as they are stored.
    """
    arrays = {"embeddings": layer._embeddings, "embeddings_scale": layer.embeddings_scale}
    if getattr(layer, "embeddings_zero", None) is not None:
        arrays["embeddings_zero"] = layer.embeddings_zero
    return {name: ops.convert_to_tensor(array) for name, array in arrays.items()}


def int4_group_size(layer: keras.Layer) -> int:
    """Returns how many numbers share a scale in int4, -1 for all of a column or in other modes."""
    return getattr(layer, "_int4_block_size", None) or -1


def set_own_policy(layer: keras.Layer, policy: keras.DTypePolicy) -> None:
    """Sets the dtype policy of one layer and quantizes nothing.

    The setter of `dtype_policy` would change the `DTypePolicyMap` that all layers share.
    """
    layer._dtype_policy = policy


def kernel_with_merged_lora(layer: keras.Layer) -> tuple[Tensor, Tensor, Tensor | None]:
    """Adds LoRA to the kernel of a quantized linear layer and rounds the sum.

    Returns:
        `(kernel, scale, zero)`, values for the layer's variables; zero is None if there is none.
    """
    return layer._get_kernel_with_merged_lora()


class SavesZeroPoint:
    """Mixin for `Dense` and `EinsumDense` that saves the zero point of GPTQ and AWQ.

    List it before the Keras class. Keras 3.15 saves an int4 kernel without the zero point, in a
    file that Keras cannot load.
    """

    def _get_kernel_with_merged_lora(self) -> tuple[Tensor, Tensor, Tensor | None]:
        kernel, scale, zero = super()._get_kernel_with_merged_lora()
        if zero is None and self.quantization_mode in ("gptq", "awq"):
            zero = self.kernel_zero
        return kernel, scale, zero


def with_attributes(layer: _Layer, **attributes: Any) -> _Layer:
    """Copies a built layer with the same variables and other values of some attributes.

    Setting an attribute of one does not change the other. The copy belongs to no model. Do not
    build or quantize it: both would change the layer, since Keras keeps both methods on the object.

    Args:
        layer: `keras.Layer` that is built.
        **attributes: the attributes that differ.
    """
    copied = object.__new__(type(layer))
    vars(copied).update(vars(layer))
    vars(copied).update(attributes)
    return copied


def with_arrays(layer: _Layer, arrays: Mapping[str, Tensor]) -> _Layer:
    """Copies a linear layer or an embedding that computes from arrays instead of its variables.

    Args:
        layer: a `Dense`, `EinsumDense` or `ReversibleEmbedding`.
        arrays: dict of attributes to tensors; the names are those of `stored_variable`.
    """
    return with_attributes(layer, **{_STORED.get(name, name): x for name, x in arrays.items()})


def value_in_call(layer: keras.Layer, variable: keras.Variable) -> Tensor:
    """Returns the value of a variable in its dtype inside of a layer's `call`."""
    is_cast = layer.autocast and layer.compute_dtype != layer.variable_dtype
    with AutocastScope(layer.compute_dtype if is_cast else None):
        value = variable.value
    # On TensorFlow the value may be a variable; a cast reads it.
    return ops.cast(value, keras.backend.standardize_dtype(value.dtype))
