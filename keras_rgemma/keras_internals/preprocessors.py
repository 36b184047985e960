"""Adapts the ways in which KerasHub's preprocessing layers run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras.src.utils.backend_utils import in_grain_data_pipeline

if TYPE_CHECKING:
    import keras_hub


def runs_in_graph(layer: keras_hub.layers.PreprocessingLayer) -> bool:
    """Returns whether a preprocessing layer makes tensors of TensorFlow, as in `tf.data`.

    Args:
        layer: `keras_hub.layers.PreprocessingLayer`.
    """
    return layer._use_tf_workflow()


def runs_in_grain() -> bool:
    """Returns whether a pipeline of grain is calling."""
    return in_grain_data_pipeline()


class GenerationInputs:
    """Mixin for `keras_hub.models.CausalLMPreprocessor` that replaces `generate_preprocess`.

    List it before KerasHub's class. Subclasses define `generation_inputs(x, sequence_length)`,
    which `generate_preprocess` calls in Python and in graphs; KerasHub's `generate_preprocess`
    always adds the start token.
    """

    def _generate_preprocess_python(
        self, x: Any, sequence_length: int | None = None
    ) -> dict[str, Any]:
        return self.generation_inputs(x, sequence_length)
