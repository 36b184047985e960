"""Layers inside of layers, and the parts of linear layers that LoRA and quantization need."""

import keras
from keras import ops
from keras.src.backend.common.variables import AutocastScope


def layers_of(layer, include_self=True):
    """Lists a layer or model and all layers in it, at any depth, each once.

    Args:
        layer: `keras.Layer`.
        include_self: bool, whether the layer itself comes first.
    """
    return layer._flatten_layers(include_self=include_self)


def variables_created_trainable(owner):
    """Lists the own variables of a layer, or those an optimizer was built for, frozen or not.

    Args:
        owner: `keras.Layer`, of whose variables those count that were created as trainable; or
            `keras.optimizers.Optimizer`.
    """
    return list(owner._trainable_variables)


def remove_variables(layer, names):
    """Takes variables away from a built layer and sets their attributes to None.

    Args:
        layer: `keras.Layer`.
        names: sequence of str, the attributes that hold the variables.
    """
    layer._tracker.unlock()
    for name in names:
        layer._untrack_variable(getattr(layer, name))
        setattr(layer, name, None)
    layer._tracker.lock()


def kernel_variable(layer):
    """The variable that a `Dense` or `EinsumDense` layer keeps its kernel in.

    Its property `kernel` adds LoRA and unpacks four bits; the variable is the kernel as it is kept.
    """
    return layer._kernel


def set_own_policy(layer, policy):
    """Sets the dtype policy of one layer and quantizes nothing.

    The setter of `dtype_policy` would write it into the `DTypePolicyMap` that the layer shares with
    all others.
    """
    layer._dtype_policy = policy


def kernel_with_merged_lora(layer):
    """The kernel of a quantized linear layer with LoRA added, rounded anew.

    Returns:
        `(kernel, scale, zero)`, as the layer keeps them; zero is None where it keeps none.
    """
    return layer._get_kernel_with_merged_lora()


class SavesZeroPoint:
    """Mixin for `Dense` and `EinsumDense` that saves the zero point of GPTQ and AWQ.

    List it before the Keras class. Keras 3.15 saves a kernel of four bits without it, in a file
    that it cannot load.
    """

    def _get_kernel_with_merged_lora(self):
        kernel, scale, zero = super()._get_kernel_with_merged_lora()
        if zero is None and self.quantization_mode in ("gptq", "awq"):
            zero = self.kernel_zero
        return kernel, scale, zero


def with_attributes(layer, **attributes):
    """Copies a built layer that keeps its variables, with other values of some attributes.

    The copy computes from the very variables of the layer; setting an attribute of one does not
    reach the other. It belongs to no model, and to build or to quantize it would do so to the
    layer: Keras keeps both methods on the object.

    Args:
        layer: `keras.Layer` that is built.
        **attributes: the attributes that differ.
    """
    copied = object.__new__(type(layer))
    vars(copied).update(vars(layer))
    vars(copied).update(attributes)
    return copied


def with_arrays(layer, arrays):
    """Copies a `Dense` or `EinsumDense` layer that computes from arrays instead of its variables.

    Args:
        layer: the layer.
        arrays: dict of attributes to tensors; "kernel" stands for what `kernel_variable` returns.
    """
    names = {"kernel": "_kernel"}
    return with_attributes(layer, **{names.get(name, name): x for name, x in arrays.items()})


def value_in_call(layer, variable):
    """The value of a variable in the dtype that Keras gives it to a layer's `call` in."""
    is_cast = layer.autocast and layer.compute_dtype != layer.variable_dtype
    with AutocastScope(layer.compute_dtype if is_cast else None):
        value = variable.value
    # On TensorFlow that may be a variable itself, which a cast reads.
    return ops.cast(value, keras.backend.standardize_dtype(value.dtype))
