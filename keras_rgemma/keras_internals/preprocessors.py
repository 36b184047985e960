"""The two ways in which KerasHub's preprocessing layers run."""


def runs_in_graph(layer):
    """True if a preprocessing layer is to give tensors of TensorFlow, as in `tf.data`.

    Args:
        layer: `keras_hub.layers.PreprocessingLayer`.
    """
    return layer._use_tf_workflow()


class GenerationInputs:
    """Mixin for `keras_hub.models.CausalLMPreprocessor` with prompts of its own making.

    List it before KerasHub's class. Subclasses define `generation_inputs(x, sequence_length)`,
    which `generate_preprocess` calls in Python and in graphs; KerasHub's own always adds the start
    token.
    """

    def _generate_preprocess_python(self, x, sequence_length=None):
        return self.generation_inputs(x, sequence_length)
