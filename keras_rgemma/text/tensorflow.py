"""Tokenizes text inside TensorFlow graphs, such as `tf.data` pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_rgemma.text.literal_space import Wrapper
from keras_rgemma.types import Shape


def with_literal_spaces(tokenizer: Any, spelled: Mapping[str, list[int]]) -> Any:
    """Wraps a `tensorflow_text.SentencepieceTokenizer` so that it encodes some texts apart.

    Args:
        tokenizer: the tokenizer.
        spelled: dict of each such text to its ids, as of `literal_space.spelled_apart`.
    """
    for text, ids in spelled.items():
        tokenizer = _Tokenizer(tokenizer, (text, ids))
    return tokenizer


class _Tokenizer(Wrapper):
    """Wraps a tokenizer with a `tokenize` that splits texts at one that has a spelling."""

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns the token ids, ragged [B, T], of strings [B]."""
        text, ids = self.spelled
        parts = tf.strings.split(texts, text)
        flat = self.wrapped.tokenize(parts.values)
        spelled = tf.tile([ids], [flat.nrows(), 1])
        tokens = parts.with_values(tf.concat([tf.cast(spelled, flat.dtype), flat], axis=1))
        # Every part came with a spelling before it; a text has one less than parts.
        return tokens.merge_dims(1, 2)[:, len(ids) :]


def python_rows(
    function: Callable[..., Any], inputs: Any, shape: Shape
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
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

    def run(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        x, y, sample_weight = function(keras.tree.pack_sequence_as(inputs, arrays))
        return x["token_ids"], x["padding_mask"], y, sample_weight

    tensors = tf.numpy_function(run, keras.tree.flatten(inputs), [tf.int32] * 4)
    for tensor in tensors:
        tensor.set_shape(shape)
    token_ids, padding_mask, y, sample_weight = tensors
    return {"token_ids": token_ids, "padding_mask": padding_mask}, y, sample_weight


def is_one_example(inputs: Any, names: Sequence[str] | None) -> bool:
    """Returns whether tensors are an example alone, and not a batch of examples.

    Args:
        inputs: a tensor, or a dict of them.
        names: the keys of the dict that hold examples, or None.
    """
    column = inputs[names[0]] if names else inputs
    tensor = keras.tree.flatten(column)[0]
    # Token ids have an axis of their own, and so have the turns of a conversation.
    return tensor.shape.rank == int(tensor.dtype.is_integer or isinstance(column, dict))
