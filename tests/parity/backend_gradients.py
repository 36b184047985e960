"""The gradients of a model's loss by its weights, in one program, on any backend."""

import keras

from compiled import QUICK, to_numpy


def weight_gradients(lm, loss, token_ids, padding_mask):
    """The gradients of a scalar function of the logits, NumPy arrays by the weights' paths.

    Taken as `fit` takes them: of the weights handed in on JAX, of the variables elsewhere.
    """
    gradients = to_numpy(_gradients(lm, loss, token_ids, padding_mask))
    return {v.path: g for v, g in zip(lm.trainable_variables, gradients, strict=True)}


def weight_values(lm):
    return [variable.value for variable in lm.trainable_variables]


def loss_of_weights(lm, loss, token_ids, padding_mask):
    """The loss as a function of the weights' values."""
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    others = [variable.value for variable in lm.non_trainable_variables]
    return lambda values: loss(lm.stateless_call(values, others, inputs, training=True)[0])


def _gradients(lm, loss, token_ids, padding_mask):
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        gradient = jax.grad(loss_of_weights(lm, loss, token_ids, padding_mask))
        return jax.jit(gradient, compiler_options=QUICK)(weight_values(lm))
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def run():
            with tf.GradientTape() as tape:
                value = loss(lm(inputs, training=True))
            return [tf.convert_to_tensor(g) for g in tape.gradient(value, weight_values(lm))]

        return run()
    import torch

    return torch.autograd.grad(loss(lm(inputs, training=True)), weight_values(lm))
