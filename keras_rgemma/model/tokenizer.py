"""SentencePiece tokenizer with Gemma's control tokens."""

import keras
import keras_hub

from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.presets import Presets, resolve_tokenizer

_SPACE = "\u2581"  # what SentencePiece writes for a space
_SPACE_BYTES = ("<0xE2>", "<0x96>", "<0x81>")


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaTokenizer(keras_hub.tokenizers.SentencePieceTokenizer):
    """Text to token ids and back, with a SentencePiece model.

    `<bos>`, `<eos>` and `<pad>` must be in the vocabulary. `<end_of_turn>`, the second token that
    ends an answer, is used where the vocabulary has it: `end_token2_id` is its id, and the
    attribute does not exist for a vocabulary without it. Tokens that the SentencePiece model
    calls user-defined (Gemma's `<start_of_turn>` and `<end_of_turn>`) are recognised in text.

    Args:
        proto: the path of a SentencePiece model file, or its bytes.
        **kwargs: of `keras_hub.tokenizers.SentencePieceTokenizer`.

    Raises:
        ValueError: a required control token is not in the vocabulary.

    Example:
    ```python
    tokenizer = keras_rgemma.RGemmaTokenizer.from_preset("rgemma_tiny_en")
    ids = tokenizer("In the beginning")
    tokenizer.detokenize(ids)  # "In the beginning"
    ```
    """

    backbone_cls = RGemmaBackbone
    end_token2 = "<end_of_turn>"
    presets = Presets()

    def __init__(self, proto=None, **kwargs):
        self._end_token2_id = None
        self._space_ids = None
        self._add_special_token("<bos>", "start_token")
        self._add_special_token("<eos>", "end_token")
        self._add_special_token("<pad>", "pad_token")
        super().__init__(proto=proto, **kwargs)

    @classmethod
    def from_preset(cls, preset, **kwargs):
        """Creates the layer from a preset: a built-in name, a folder, or a hub handle."""
        return super().from_preset(resolve_tokenizer(preset, cls.__name__), **kwargs)

    @property
    def end_token2_id(self):
        """The id of `<end_of_turn>`. KerasHub asks by `hasattr` whether there is one."""
        if self._end_token2_id is None:
            raise AttributeError(f"The vocabulary has no {self.end_token2!r}.")
        return self._end_token2_id

    def set_proto(self, proto):
        super().set_proto(proto)
        vocabulary = self._token_to_id_map or {}
        self._end_token2_id = vocabulary.get(self.end_token2)
        ids = tuple(vocabulary.get(piece) for piece in _SPACE_BYTES)
        self._space_ids = None if None in ids else ids

    # SentencePiece reads a literal U+2581 as a space. With byte fallback it is spelled as its
    # bytes instead, so that every text comes back as it was.

    def _tokenize_spm(self, inputs):
        whole = super()._tokenize_spm
        literal = isinstance(inputs, str) and _SPACE in inputs
        listed = isinstance(inputs, (list, tuple)) and any(
            isinstance(text, str) and _SPACE in text for text in inputs
        )
        if self._space_ids is None or self.sequence_length or not (literal or listed):
            return whole(inputs)
        if literal:
            return self._join(whole(inputs.split(_SPACE)))
        return [self._join(whole(text.split(_SPACE))) for text in inputs]

    def _join(self, parts):
        ids = list(parts[0])
        for part in parts[1:]:
            ids += [*self._space_ids, *part]
        return ids
