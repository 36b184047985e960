"""Measure speed and memory of this machine on each backend.

    keras-rgemma bench
    keras-rgemma bench --backends jax torch --dtype bfloat16

Prints tokens a second and peak memory of prefill, decode, streams and training with random weights,
each measured in a process of its own. The last line is the same as JSON. The ceilings of the host
are measured in the same run: prefill is at best `matmul / (2 * parameters)`, embeddings aside,
decode of one row `read / bytes of weights`, a training step `matmul / (6 * parameters)`.
"""

import argparse

from keras_rgemma.benchmarks import arguments
from keras_rgemma.startup import without_startup_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    arguments.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measures and prints a table."""
    with without_startup_lines():
        from keras_rgemma.benchmarks import suite

    suite.run(args)
