"""Compiles functions of a model and tensors on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_rgemma.generation.decode import decode_block
from keras_rgemma.generation.model import Sampler
from keras_rgemma.keras_internals.tensorflow import run_graph

__all__ = ["compile_program", "compiles_slowly", "decode_block"]


def compiles_slowly() -> bool:
    """Returns whether a program of a large model takes a minute to compile, as for TPUs."""
    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


def compile_program(
    function: Callable[..., Any], model: Any, sampler: Sampler | None, jit_compile: bool
) -> Callable[..., Any]:
    """Compiles a function into a graph for each structure and shapes of its arguments.

    Args:
        function: of the model and of tensors. The variables that it reads are captured.
        model: `keras.Model`.
        sampler: unused here.
        jit_compile: bool, whether XLA compiles the graphs.

    Returns:
        The program, with an attribute `count`: the function that counts graphs, one for each
        shape.
    """
    del sampler
    programs = {}

    def run(*args: Any) -> Any:
        tensors = tf.nest.flatten(args)
        key = tuple((tuple(x.shape), x.dtype) for x in tensors)
        if key not in programs:
            structure = tf.nest.map_structure(lambda _: None, args)

            def of_tensors(*tensors: tf.Tensor) -> Any:
                return function(model, *tf.nest.pack_sequence_as(structure, tensors))

            # A tf.function warns that it retraces for many shapes; a concrete function does not.
            # AutoGraph would read every function first, for a second; none is written for it.
            graph = tf.function(of_tensors, autograph=False, jit_compile=bool(jit_compile))
            specs = map(tf.TensorSpec.from_tensor, tensors)
            programs[key] = graph.get_concrete_function(*specs)
        return run_graph(programs[key], tensors)

    run.count = lambda: len(programs)
    return run
