"""The Keras backend, and the module of each operation that belongs to it."""

import importlib

import keras

BACKENDS = ("jax", "tensorflow", "torch")


def check_backend():
    """The name of Keras' backend.

    Raises:
        ValueError: it is not one that this package runs on.
    """
    backend = keras.config.backend()
    if backend not in BACKENDS:
        raise ValueError(
            f"keras-rgemma runs on the Keras backends {BACKENDS}. Received: {backend!r}. Set "
            "KERAS_BACKEND to one of them before the first import of keras."
        )
    return backend


def backend_module(package):
    """The module of a package that is named after the backend.

    Args:
        package: str, the dotted name of the package.
    """
    return importlib.import_module(f"{package}.{check_backend()}")
