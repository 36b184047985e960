"""Adds special tokens and processors to KerasHub's SentencePiece tokenizer."""


def add_special_token(tokenizer, token, name):
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
    `tensorflow_text.SentencepieceTokenizer` and the bytes of the model, called if TensorFlow is
    installed; each returns the processor to use instead.
    """

    def _set_proto_spm(self, proto):
        super()._set_proto_spm(proto)
        self._sentence_piece_spm = self.wrap_processor(self._sentence_piece_spm)

    def _set_proto_tf(self, proto):
        super()._set_proto_tf(proto)
        self._sentence_piece = self.wrap_graph_processor(self._sentence_piece, proto)
