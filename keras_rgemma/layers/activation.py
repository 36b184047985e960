"""Finds the nonlinearity of the MLP's and the recurrent block's gate branches by name.

The functions that Keras lacks are those of transformers (`transformers/activations.py`), and have
their names there.
"""

import math

import keras
from keras import ops


def gelu_tanh(x):
    """Computes GELU by the tanh formula."""
    return ops.gelu(x, approximate=True)


def gelu(x):
    """Computes GELU by the error function."""
    return ops.gelu(x, approximate=False)


def gelu_10(x):
    """Computes GELU, clipped to the range from -10 to 10."""
    return ops.clip(gelu(x), -10.0, 10.0)


def quick_gelu(x):
    """Computes GELU by the logistic function."""
    return x * ops.sigmoid(1.702 * x)


def laplace(x):
    """Computes the distribution function of a normal variable, which resembles `relu2`."""
    return 0.5 * (1.0 + ops.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def leaky_relu(x):
    """Computes ReLU with the slope 0.01 below 0, as PyTorch does; the slope of Keras is 0.2."""
    return ops.leaky_relu(x, negative_slope=0.01)


def relu2(x):
    """Computes the square of ReLU."""
    return ops.square(ops.relu(x))


def sqrtsoftplus(x):
    """Computes the square root of softplus."""
    return ops.sqrt(ops.softplus(x))


def gated(nonlinearity, gate, x):
    """Computes `nonlinearity(gate) * x` of arrays of one shape."""
    return nonlinearity(gate) * x


_OWN = {
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "gelu_10": gelu_10,
    "quick_gelu": quick_gelu,
    "laplace": laplace,
    "leaky_relu_0.01": leaky_relu,
    "relu2": relu2,
    "sqrtsoftplus": sqrtsoftplus,
}


def activation(name):
    """Returns the function of x with a name of `RGemmaConfig.activation`."""
    return _OWN[name] if name in _OWN else keras.activations.get(name)
