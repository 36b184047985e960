"""Functions of arrays as programs: compiled where the backend compiles, without gradients."""

import keras
from keras import ops

# For XLA on CPUs: less work on machine code, which is compiled once and run for milliseconds.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def program(function):
    """`function` of trees of arrays, compiled once a shape; returns what it returns.

    Op by op, JAX compiles every operation for every shape, which takes minutes for a model.
    """
    inner = _program(function)
    return lambda *trees: inner(*keras.tree.map_structure(ops.convert_to_tensor, trees))


def compiled(function):
    """The same, but returns trees of NumPy arrays."""
    run = program(function)
    return lambda *trees: to_numpy(run(*trees))


def to_numpy(tree):
    """A tree of tensors as NumPy arrays; half precision becomes float32, without loss."""

    def convert(x):
        dtype = keras.backend.standardize_dtype(x.dtype)
        return ops.convert_to_numpy(
            ops.cast(x, "float32") if dtype in ("bfloat16", "float16") else x
        )

    return keras.tree.map_structure(convert, tree)


def _program(function):
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.jit(function, compiler_options=QUICK)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    import torch

    return torch.no_grad()(function)
