"""The nonlinearity of the MLP's and the recurrent block's gate branches, by name."""

import keras


def activation(name):
    """The function of x that `RGemmaConfig.activation` names. "gelu_tanh" is the tanh formula."""
    if name == "gelu_tanh":
        return lambda x: keras.ops.gelu(x, approximate=True)
    if name == "gelu":
        return lambda x: keras.ops.gelu(x, approximate=False)
    return keras.activations.get(name)
