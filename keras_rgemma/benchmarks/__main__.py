"""Measures speed and memory on each backend: the same as `keras-rgemma bench`.

    python -m keras_rgemma.benchmarks
    python -m keras_rgemma.benchmarks --backends jax torch --dtype bfloat16

`keras-rgemma bench --help` says what is measured.
"""

import argparse
import sys

from keras_rgemma.benchmarks.arguments import add_arguments
from keras_rgemma.benchmarks.suite import run


def main() -> None:
    """Reads the options, measures and prints; ends the process with 1 if a measurement failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except ChildProcessError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
