"""Fits the models of KerasHub to PyTorch's parameters and to `keras.RematScope`."""

from keras_rgemma.keras_internals.parameters import ParametersOfVariables


class KerasModel(ParametersOfVariables):
    """Mixin for a model of KerasHub; list it before the class of KerasHub.

    Its parameters on PyTorch are its variables. In `keras.RematScope` its layers recompute their
    activations one by one: a whole model that is recomputed at once saves no memory.
    """

    def rematerialized_call(self, layer_call, *args, **kwargs):
        return layer_call
