"""Adapts the ways in which KerasHub's preprocessing layers run."""

from keras.src.utils.backend_utils import in_grain_data_pipeline


def runs_in_graph(layer):
    """Returns whether a preprocessing layer makes tensors of TensorFlow, as in `tf.data`.

    Args:
        layer: `keras_hub.layers.PreprocessingLayer`.
    """
    return layer._use_tf_workflow()


def runs_in_grain():
    """Returns whether a pipeline of grain is calling."""
    return in_grain_data_pipeline()


class GenerationInputs:
    """Mixin for `keras_hub.models.CausalLMPreprocessor` that replaces `generate_preprocess`.

    List it before KerasHub's class. Subclasses define `generation_inputs(x, sequence_length)`,
    which `generate_preprocess` calls in Python and in graphs; KerasHub's `generate_preprocess`
    always adds the start token.
    """

    def _generate_preprocess_python(self, x, sequence_length=None):
        return self.generation_inputs(x, sequence_length)
