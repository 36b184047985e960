"""The special tokens and the processors of KerasHub's SentencePiece tokenizer."""


def add_special_token(tokenizer, token, name):
    """Makes a token an attribute of a tokenizer, and its id another, which must be in a vocabulary.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer`, before `super().__init__` in its constructor.
        token: str, such as "<bos>".
        name: str, the attribute, such as "start_token"; the id's ends in "_id".
    """
    tokenizer._add_special_token(token, name)


class WrapsProcessors:
    """Mixin for `keras_hub.tokenizers.SentencePieceTokenizer` that replaces its processors.

    List it before KerasHub's class. Subclasses define `wrap_processor(processor)`, which is given a
    `sentencepiece.SentencePieceProcessor`, and `wrap_graph_processor(processor, proto)`, which is
    given a `tensorflow_text.SentencepieceTokenizer` and the bytes of the model where TensorFlow is
    installed; each returns what is used instead.
    """

    def _set_proto_spm(self, proto):
        super()._set_proto_spm(proto)
        self._sentence_piece_spm = self.wrap_processor(self._sentence_piece_spm)

    def _set_proto_tf(self, proto):
        super()._set_proto_tf(proto)
        self._sentence_piece = self.wrap_graph_processor(self._sentence_piece, proto)
