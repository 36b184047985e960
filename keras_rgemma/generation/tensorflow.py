"""How a function of tensors becomes one compiled program on TensorFlow."""

import tensorflow as tf


def compile_program(function, model, sampler, jit_compile):
    """Compiles `function` into a graph, with XLA if `jit_compile`. Variables are captured."""
    del model, sampler
    return tf.function(function, jit_compile=bool(jit_compile))
