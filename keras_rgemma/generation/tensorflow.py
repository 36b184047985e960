"""How a function of tensors becomes compiled programs on TensorFlow."""

import tensorflow as tf


def compile_program(function, model, sampler, jit_compile):
    """Compiles `function` into a graph for each structure and shapes of its arguments.

    Args:
        function: takes and returns tensors. The variables it reads are captured.
        model: unused here.
        sampler: unused here.
        jit_compile: bool, whether XLA compiles the graphs.

    Returns:
        The program, with an attribute `count`: how many it is, one for each shape.
    """
    del model, sampler
    programs = {}

    def run(*args):
        specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, args)
        key = tuple((tuple(s.shape), s.dtype) for s in tf.nest.flatten(specs))
        if key not in programs:
            # Concrete: a tf.function of many shapes warns that it retraces, which buckets intend.
            graph = tf.function(function, jit_compile=bool(jit_compile))
            programs[key] = graph.get_concrete_function(*specs)
        return programs[key](*args)

    run.count = lambda: len(programs)
    return run
