"""List the presets: their size, their download, and their files in the cache.

keras-rgemma presets
"""

import argparse

from keras_rgemma.checkpoints.cache import cached_bytes
from keras_rgemma.checkpoints.registry import EMBEDDED, presets

COLUMNS = "{:<23}{:>14}{:>10}{:>14}  {}"
GATED = """
The weights of Google's models are gated. Accept the licence on the page of the model at
huggingface.co, then log in with `hf auth login` or set HF_TOKEN to a token of that account."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing to a parser: this command has no arguments."""


def run(args: argparse.Namespace) -> None:
    """Prints a table of the presets."""
    print(COLUMNS.format("PRESET", "PARAMETERS", "DOWNLOAD", "IN THE CACHE", "WEIGHTS"))
    for name, preset in presets().items():
        download = cached = "-"
        weights = preset["weights"] or "none were published"
        if weights == EMBEDDED:
            weights = "ship with the package"
        elif preset["weights"]:
            download, cached = map(_size, (preset["download_bytes"], cached_bytes(weights)))
            weights += ", needs a token"
        print(COLUMNS.format(name, f"{preset['parameter_count']:,}", download, cached, weights))
    print(GATED)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count else "no"
