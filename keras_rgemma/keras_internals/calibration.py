"""Chooses the layers of a model that GPTQ and AWQ round."""

import keras


class CalibratedBlock:
    """Mixin for an element of `sequential_blocks` that names the layers GPTQ and AWQ round.

    Subclasses define `calibrated_layers()`, which returns a list of `keras.Layer`. Keras rounds
    each `Dense` and `EinsumDense` among them without layers inside.
    """

    def _flatten_layers(self) -> list[keras.Layer]:
        return self.calibrated_layers()
