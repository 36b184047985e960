"""Finds the nonlinearity of the MLP's and the recurrent block's gate branches by name.

The functions that Keras lacks are those of transformers (`transformers/activations.py`), and have
their names there.
"""

import math
from collections.abc import Callable

import keras
from keras import ops

from keras_rgemma.types import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """Computes GELU by the tanh formula."""
    return ops.gelu(x, approximate=True)


def gelu(x: Tensor) -> Tensor:
    """Computes GELU by the error function."""
    return ops.gelu(x, approximate=False)


def gelu_10(x: Tensor) -> Tensor:
    """Computes GELU, clipped to the range from -10 to 10."""
    return ops.clip(gelu(x), -10.0, 10.0)


def quick_gelu(x: Tensor) -> Tensor:
    """Computes GELU by the logistic function."""
    return x * ops.sigmoid(1.702 * x)


def laplace(x: Tensor) -> Tensor:
    """Computes the distribution function of a normal variable, which resembles `relu2`."""
    return 0.5 * (1.0 + ops.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def leaky_relu(x: Tensor) -> Tensor:
    """Computes ReLU with the slope 0.01 below 0, as PyTorch does; the slope of Keras is 0.2."""
    return ops.leaky_relu(x, negative_slope=0.01)


def relu2(x: Tensor) -> Tensor:
    """Computes the square of ReLU."""
    return ops.square(ops.relu(x))


def sqrtsoftplus(x: Tensor) -> Tensor:
    """Computes the square root of softplus."""
    return ops.sqrt(ops.softplus(x))


def gated(nonlinearity: Callable[[Tensor], Tensor], gate: Tensor, x: Tensor) -> Tensor:
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


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the function of x with a name of `RGemmaConfig.activation`."""
    return _OWN[name] if name in _OWN else keras.activations.get(name)
