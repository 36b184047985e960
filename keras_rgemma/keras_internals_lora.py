"""The private names of Keras behind LoRA, quantized layers and training, one function a name.

No other file touches one. Each has a test that says what Keras does with it: see
`tests/test_keras_internals_lora.py`.
"""

import contextlib
import pathlib
import zipfile

import h5py
import keras
from keras import ops
from keras.src.backend.common.variables import AutocastScope
from keras.src.saving import saving_lib

# === Layers ===


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


def kernel_variable(layer):
    """The variable that a `Dense` or `EinsumDense` layer keeps its kernel in.

    Its property `kernel` adds LoRA and unpacks four bits; the variable is the kernel as it is kept.
    """
    return layer._kernel


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


def set_own_policy(layer, policy):
    """Sets the dtype policy of one layer and quantizes nothing.

    The setter of `dtype_policy` would write it into the `DTypePolicyMap` that the layer shares with
    all others.
    """
    layer._dtype_policy = policy


# === Files of weights ===


@contextlib.contextmanager
def open_weights(path):
    """Opens a file of weights as `keras.Model.load_weights` does; None for what it is not one of.

    Args:
        path: str or path that ends in ".weights.h5", ".weights.json" or ".keras".
    """
    with contextlib.ExitStack() as stack:
        store, name = None, str(path)
        if pathlib.Path(path).is_file():
            if name.endswith("weights.h5"):
                store = saving_lib.H5IOStore(path, mode="r")
            elif name.endswith("weights.json"):
                store = saving_lib.ShardedH5IOStore(path, mode="r")
            elif name.endswith(".keras"):
                archive = stack.enter_context(zipfile.ZipFile(path))
                store = saving_lib.H5IOStore("model.weights.h5", archive=archive, mode="r")
        if store is not None:
            stack.callback(store.close)
        yield store


def h5_files(store):
    """Iterates over the `h5py.File`s of the store that `load_own_variables` is given.

    Args:
        store: what `keras.Layer.load_own_variables` receives while a file is loaded.
    """
    sharding = getattr(store, "sharding_config", None)
    if sharding is None:
        file = getattr(store, "h5_file", None)
        if file is not None:
            yield file
        return
    names = set()
    for shards in sharding["weight_map"].values():
        names |= {shards} if isinstance(shards, str) else set(shards)
    for name in sorted(names):
        with h5py.File(store.path.with_name(name), "r") as file:
            yield file


def saved_block(group, class_name):
    """The layer of a functional model that a group in a file of its weights belongs to.

    Args:
        group: str, the name of a group, such as "layers/residual_block_2/mlp_block/vars".
        class_name: str, in snake case, of the layers that count: "residual_block".

    Returns:
        The index of the layer among those of its class, and the rest of the name as a list of str
        ("mlp_block", "vars"); or None if it belongs to none of them.
    """
    parts = group.split("/")
    for i, part in enumerate(parts[1:], start=1):
        name, _, number = part.rpartition("_")
        if parts[i - 1] != "layers":
            continue
        if part == class_name:
            return 0, parts[i + 1 :]
        if name == class_name and number.isdecimal():
            return int(number), parts[i + 1 :]
    return None


# === Training ===


def nested_evaluation(kwargs):
    """True if `evaluate` got these arguments from `fit`, for its validation data."""
    return bool(kwargs.get("_use_cached_eval_dataset", False))


def forget_initial_epoch(model):
    """Has the next `fit` begin at its own `initial_epoch` instead of the epoch of a backup."""
    model._initial_epoch = None


def backup_files(backup):
    """The files of a `BackupAndRestore`: the weights and the progress, a pair of paths.

    Args:
        backup: `keras.callbacks.BackupAndRestore` of a local folder.
    """
    return pathlib.Path(backup._weights_path), pathlib.Path(backup._training_metadata_path)


def sync_weights(model):
    """Writes the weights back into their variables in a callback of `fit`.

    On JAX, Keras keeps them elsewhere between the batches of an epoch. On the others this does
    nothing.
    """
    getattr(model, "jax_state_sync", lambda: None)()
