"""The parts of a model that GPTQ and AWQ look at."""


class CalibratedBlock:
    """Mixin for an element of `sequential_blocks` that names the layers GPTQ and AWQ round.

    Subclasses define `calibrated_layers()`, which returns a list of `keras.Layer`. Keras rounds
    those of them that are `Dense` or `EinsumDense` and have no layers inside.
    """

    def _flatten_layers(self):
        return self.calibrated_layers()
