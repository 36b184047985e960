"""Measures KerasHub's Gemma of the same size on the backend of KERAS_BACKEND; see work.py."""

import keras_hub
import ours
import work

from keras_rgemma.checkpoints.folder import open_checkpoint


def gemma(config, dtype, lm_class=keras_hub.models.GemmaCausalLM):
    """Makes a Gemma with random weights.

    Args:
        config: `RGemmaConfig` of the sizes.
        dtype: str, of the weights and the computation.
        lm_class: the class of the causal LM.
    """
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=config.vocabulary_size,
        num_layers=config.num_layers,
        num_query_heads=config.num_query_heads,
        num_key_value_heads=1,
        hidden_dim=config.hidden_dim,
        intermediate_dim=2 * config.intermediate_dim,  # of both halves
        head_dim=config.hidden_dim // config.num_query_heads,
        dtype=dtype,
    )
    return lm_class(backbone, preprocessor=None)


def make(args):
    """Makes a Gemma with the sizes of the checkpoint."""
    return ours.KerasModel(gemma(open_checkpoint(args.folder).config, args.dtype))


if __name__ == "__main__":
    work.measure(make, work.arguments(__doc__))
