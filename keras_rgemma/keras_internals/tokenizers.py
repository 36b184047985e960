"""Adds special tokens and processors to KerasHub's SentencePiece tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    import keras_hub


def add_special_token(tokenizer: keras_hub.tokenizers.Tokenizer, token: str, name: str) -> None:
    """Makes a token and its id attributes of a tokenizer; a vocabulary must have the token.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer`, before `super().__init__` in its constructor.
        token: str, such as "<bos>".
        name: str, the attribute, such as "start_token"; that of the id ends in "_id".
    """
    tokenizer._add_special_token(token, name)


class WrapsProcessors:
    """Mixin for `keras_hub.tokenizers.SentencePieceTokenizer` that replaces its processors.

    List it before KerasHub's class. Subclasses define `wrap_processor(processor)`, of a
    `sentencepiece.SentencePieceProcessor`, and `wrap_graph_processor(processor, proto)`, of a
    `tensorflow_text.SentencepieceTokenizer` and the bytes of the model, called when a graph of
    TensorFlow needs it; each returns the processor to use instead. They may define
    `loaded_proto(proto)`, which returns the bytes that both load instead of those of the model.

    KerasHub makes both processors at once on every backend, which starts TensorFlow. Here backends
    that compute without it do not start it.
    """

    def loaded_proto(self, proto: bytes) -> bytes:
        return proto

    def _set_proto_spm(self, proto: bytes) -> None:
        super()._set_proto_spm(self.loaded_proto(proto))
        self._sentence_piece_spm = self.wrap_processor(self._sentence_piece_spm)

    def _set_proto_tf(self, proto: bytes) -> None:
        self._sentence_piece = None
        if keras.config.backend() == "tensorflow":
            self._make_graph_processor(proto)

    def _maybe_initialized_tf(self) -> None:
        if getattr(self, "_sentence_piece", None) is None:
            self._make_graph_processor(self.proto)

    def _make_graph_processor(self, proto: bytes) -> None:
        from keras_rgemma.keras_internals import tensorflow

        proto = self.loaded_proto(proto)
        tensorflow.start()
        with tensorflow.outside_of_graphs():
            super()._set_proto_tf(proto)
        self._sentence_piece = self.wrap_graph_processor(self._sentence_piece, proto)
