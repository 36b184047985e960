"""Tokenizes text inside TensorFlow graphs, such as `tf.data` pipelines."""

import keras
import tensorflow as tf

from keras_rgemma.text.literal_space import SPACE, Wrapper


def with_literal_spaces(tokenizer, space_ids):
    """Wraps a `tensorflow_text.SentencepieceTokenizer` so that it encodes U+2581 as its bytes.

    Args:
        tokenizer: the tokenizer.
        space_ids: list of the ids of those bytes, or None for a vocabulary without bytes.
    """
    return tokenizer if space_ids is None else _Tokenizer(tokenizer, space_ids)


class _Tokenizer(Wrapper):
    """Wraps a tokenizer with a `tokenize` that splits texts at U+2581."""

    def tokenize(self, texts):
        """Returns the token ids, ragged [B, T], of strings [B]."""
        parts = tf.strings.split(texts, SPACE)
        tokens = self.wrapped.tokenize(parts)
        flat = tokens.values
        spaces = tf.tile([self.space_tokens], [flat.nrows(), 1])
        tokens = tokens.with_values(tf.concat([tf.cast(spaces, flat.dtype), flat], axis=1))
        # Every part came with a space before it; a text has one space less than parts.
        return tokens.merge_dims(1, 2)[:, len(self.space_tokens) :]


def python_rows(function, inputs, shape):
    """Calls a Python function of examples inside a graph, and returns its arrays as tensors.

    Args:
        function: function of `inputs` with NumPy arrays in place of the tensors, strings as bytes.
            Returns `(x, y, sample_weight)` of int32 arrays, x a dict of `token_ids` and
            `padding_mask`.
        inputs: structure of tensors.
        shape: tuple of ints and None, the shape of each array.

    Returns:
        `(x, y, sample_weight)` of int32 tensors.
    """

    def run(*arrays):
        x, y, sample_weight = function(keras.tree.pack_sequence_as(inputs, arrays))
        return x["token_ids"], x["padding_mask"], y, sample_weight

    tensors = tf.numpy_function(run, keras.tree.flatten(inputs), [tf.int32] * 4)
    for tensor in tensors:
        tensor.set_shape(shape)
    token_ids, padding_mask, y, sample_weight = tensors
    return {"token_ids": token_ids, "padding_mask": padding_mask}, y, sample_weight


def is_one_example(inputs, names):
    """Returns whether tensors are an example alone, and not a batch of examples.

    Args:
        inputs: a tensor, or a dict of them.
        names: the keys of the dict that hold examples, or None.
    """
    column = inputs[names[0]] if names else inputs
    tensor = keras.tree.flatten(column)[0]
    # Token ids have an axis of their own, and so have the turns of a conversation.
    return tensor.shape.rank == int(tensor.dtype.is_integer or isinstance(column, dict))
