"""The same inside TensorFlow graphs, such as `tf.data` pipelines."""

import tensorflow as tf

from keras_rgemma.ops.literal_space import SPACE, Wrapper


def with_literal_spaces(tokenizer, space_ids):
    """A `tensorflow_text.SentencepieceTokenizer` that encodes U+2581 as its bytes.

    Args:
        tokenizer: the tokenizer.
        space_ids: list of the ids of those bytes, or None for a vocabulary without them.
    """
    return tokenizer if space_ids is None else _Tokenizer(tokenizer, space_ids)


class _Tokenizer(Wrapper):
    """A tokenizer whose `tokenize` splits texts at U+2581."""

    def tokenize(self, texts):
        """Token ids, ragged [B, T], of strings [B]."""
        parts = tf.strings.split(texts, SPACE)
        tokens = self.wrapped.tokenize(parts)
        flat = tokens.values
        spaces = tf.tile([self.space_tokens], [flat.nrows(), 1])
        tokens = tokens.with_values(tf.concat([tf.cast(spaces, flat.dtype), flat], axis=1))
        # Every part came with a space before it; a text has one less than it has parts.
        return tokens.merge_dims(1, 2)[:, len(self.space_tokens) :]
