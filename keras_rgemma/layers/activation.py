"""Finds the nonlinearity of the MLP's and the recurrent block's gate branches by name."""

import keras


def gelu_tanh(x):
    """Computes GELU by the tanh formula."""
    return keras.ops.gelu(x, approximate=True)


def gelu(x):
    """Computes GELU by the error function."""
    return keras.ops.gelu(x, approximate=False)


def activation(name):
    """Returns the function of x with a name of `RGemmaConfig.activation`."""
    own = {"gelu_tanh": gelu_tanh, "gelu": gelu}
    return own[name] if name in own else keras.activations.get(name)
