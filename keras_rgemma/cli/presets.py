"""List the presets: their size, and where their weights come from.

keras-rgemma presets
"""


def add_arguments(parser):
    """This command has no arguments."""


def run(args):
    """Prints a table."""
    from keras_rgemma.model.presets import presets

    for name, preset in presets().items():
        weights = preset["weights"] or "no public weights"
        print(f"{name:<24}{preset['parameter_count']:>14,}  {weights}")
