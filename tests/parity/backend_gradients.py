"""The gradients of a model's loss by its weights, in one program, on any backend."""

import keras

from compiled import QUICK, to_numpy


def weight_gradients(lm, loss, token_ids, padding_mask):
    """The gradients of a scalar function of the logits, NumPy arrays by the weights' paths.

    Taken as `fit` takes them: of the weights handed in on JAX, of the variables elsewhere.
    """
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    gradients = to_numpy(_gradients(lm, loss, inputs))
    return {v.path: g for v, g in zip(lm.trainable_variables, gradients, strict=True)}


def _gradients(lm, loss, inputs):
    values = [variable.value for variable in lm.trainable_variables]
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def loss_of(values):
            return loss(lm.stateless_call(values, [], inputs, training=True)[0])

        return jax.jit(jax.grad(loss_of), compiler_options=QUICK)(values)
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def run():
            with tf.GradientTape() as tape:
                value = loss(lm(inputs, training=True))
            return [tf.convert_to_tensor(g) for g in tape.gradient(value, values)]

        return run()
    import torch

    return torch.autograd.grad(loss(lm(inputs, training=True)), values)
