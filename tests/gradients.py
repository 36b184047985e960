"""Gradients of a scalar function of arrays, on any backend."""

import keras
from keras import ops

from compiled import QUICK


def gradients(function, *arrays):
    """The gradients of `function(*tensors)`, a scalar, by each argument, as NumPy arrays."""
    return [
        ops.convert_to_numpy(ops.cast(gradient, "float32"))
        for gradient in _gradients(function, [ops.convert_to_tensor(x) for x in arrays])
    ]


def _gradients(function, tensors):
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        gradient = jax.grad(function, argnums=range(len(tensors)))
        return jax.jit(gradient, compiler_options=QUICK)(*tensors)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss = function(*tensors)
        return tape.gradient(loss, tensors)
    import torch

    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    return torch.autograd.grad(function(*tensors), tensors)
