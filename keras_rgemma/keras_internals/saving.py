"""How Keras lays out a file of weights."""


def saved_layers(file, class_name):
    """Names the groups of the layers of one class in a file of a functional model's weights.

    Args:
        file: `h5py.File`.
        class_name: str, in snake case, as Keras writes it: "residual_block" for `ResidualBlock`.

    Returns:
        set of str.
    """
    names = file.get("layers", ())
    return {name for name in names if name.rstrip("0123456789").rstrip("_") == class_name}
