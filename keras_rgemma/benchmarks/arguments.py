"""Defines the options of a run of measurements."""

import argparse

from keras_rgemma.choices import BACKENDS

MEASURES = ("prefill", "decode B1", "decode B8", "stream", "train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a run to a parser."""
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--size", default="110m", help="110m or tiny")
    parser.add_argument("--dtype", default="float32", help="of weights and computation")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
