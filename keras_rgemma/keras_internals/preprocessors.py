"""Adapts the two ways in which KerasHub's preprocessing layers run."""


def runs_in_graph(layer):
    """Returns whether a preprocessing layer makes tensors of TensorFlow, as in `tf.data`.

    Args:
        layer: `keras_hub.layers.PreprocessingLayer`.
    """
    return layer._use_tf_workflow()


class GenerationInputs:
    """Mixin for `keras_hub.models.CausalLMPreprocessor` that replaces `generate_preprocess`.

    List it before KerasHub's class. Subclasses define `generation_inputs(x, sequence_length)`,
    which `generate_preprocess` calls in Python and in graphs; KerasHub's `generate_preprocess`
    always adds the start token.
    """

    def _generate_preprocess_python(self, x, sequence_length=None):
        return self.generation_inputs(x, sequence_length)
