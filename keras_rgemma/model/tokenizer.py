"""SentencePiece tokenizer with Gemma's control tokens."""

import pathlib
import re

import keras
import keras_hub
import sentencepiece

from keras_rgemma.checkpoints.folder import open_checkpoint, tokenizer_file
from keras_rgemma.checkpoints.hub import TOKENIZER
from keras_rgemma.checkpoints.presets import Presets, resolve
from keras_rgemma.keras_internals.tokenizers import WrapsProcessors, add_special_token
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.text.literal_space import space_ids, with_literal_spaces


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaTokenizer(WrapsProcessors, keras_hub.tokenizers.SentencePieceTokenizer):
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
    start_of_turn = "<start_of_turn>"
    end_token2 = "<end_of_turn>"
    presets = Presets()

    def __init__(self, proto=None, **kwargs):
        self._end_token2_id = None
        add_special_token(self, "<bos>", "start_token")
        add_special_token(self, "<eos>", "end_token")
        add_special_token(self, "<pad>", "pad_token")
        super().__init__(proto=proto, **kwargs)
        # There is nothing to build, and `quantize` of a model refuses layers that are not.
        self.built = True

    @classmethod
    def from_preset(cls, preset, *, revision=None, **kwargs):
        """Creates the layer from a preset; no weights are fetched.

        Args:
            preset, revision: see `RGemmaBackbone.from_preset`.
            **kwargs: what the constructor takes.

        Raises:
            ValueError: a preset without a tokenizer. See `RGemmaBackbone.from_preset`, too.
        """
        folder = resolve(preset, TOKENIZER, revision)
        proto = tokenizer_file(folder)
        if not proto and open_checkpoint(folder):
            raise ValueError(
                f"{folder!r} holds no tokenizer.model, the SentencePiece model of its tokenizer. "
                "Copy that file of the model it comes from into it."
            )
        return cls(proto=proto, **kwargs) if proto else super().from_preset(folder, **kwargs)

    @property
    def end_token2_id(self):
        """The id of `<end_of_turn>`. KerasHub asks by `hasattr` whether there is one."""
        if self._end_token2_id is None:
            raise AttributeError("end_token2_id")
        return self._end_token2_id

    def literal_token_ids(self, text):
        """The token ids of text in which no control token is recognised.

        `<end_of_turn>` in it becomes plain characters, which read the same.

        Args:
            text: str.

        Returns:
            list of ints.
        """
        controls = [*self.special_tokens, self.start_of_turn, self.end_token2]
        parts = []
        for part in re.split(f"({'|'.join(map(re.escape, controls))})", text):
            # Two halves of a control token cannot be taken for it.
            parts += [part[:1], part[1:]] if part in controls else [part]
        return [int(id) for row in self.token_id_rows(parts) for id in row]

    def token_id_rows(self, texts):
        """The token ids of each of several texts, a list of sequences of ints; uncut, unpadded."""
        ids = self.tokenize(texts)
        return ids.to_list() if hasattr(ids, "to_list") else ids

    def control_token_ids(self):
        """The ids of `<start_of_turn>` and `<end_of_turn>`.

        Raises:
            ValueError: the vocabulary lacks one of them.
        """
        ids = {token: self.token_to_id(token) for token in (self.start_of_turn, self.end_token2)}
        for token, id in ids.items():
            if self.id_to_token(id) != token:
                raise ValueError(
                    f"The vocabulary has no {token!r}, which the format of a conversation needs. "
                    "Use `generate`, or the tokenizer of an instruction-tuned model."
                )
        return tuple(ids.values())

    def turn_token_ids(self, role, content, is_first=False):
        """The ids of a turn of a conversation up to its end.

        That is `<start_of_turn>ROLE\\nCONTENT`, after a line break unless it is the first. What
        stands in the content is never taken for a control token.

        Args:
            role: str, "user" or "model".
            content: str; white space around it is left out.
            is_first: bool.

        Returns:
            list of ints.
        """
        between = [] if is_first else self.literal_token_ids("\n")
        start_of_turn, _ = self.control_token_ids()
        return [*between, start_of_turn, *self.literal_token_ids(f"{role}\n{content.strip()}")]

    def set_proto(self, proto):
        try:
            super().set_proto(proto)
        except ValueError:
            raise
        except Exception as error:  # of TensorFlow's or SentencePiece's own classes
            name = repr(proto) if isinstance(proto, (str, pathlib.PurePath)) else "`proto`"
            raise ValueError(
                f"{name} cannot be read as a SentencePiece model. Fetch it again. {error}"
            ) from error
        is_known = self.proto is not None and self.end_token2 in self.get_vocabulary()
        self._end_token2_id = self.token_to_id(self.end_token2) if is_known else None

    def wrap_processor(self, processor):
        """A SentencePiece processor that gives back a literal U+2581; see `WrapsProcessors`."""
        return with_literal_spaces(processor, as_text=is_text(self.compute_dtype))

    def wrap_graph_processor(self, processor, proto):
        """The same for graphs of TensorFlow, if the tokenizer returns plain ids."""
        from keras_rgemma.text.tensorflow import with_literal_spaces as in_graphs

        if self.add_bos or self.add_eos or is_text(self.compute_dtype):
            return processor
        # The processor outside of graphs does not exist yet when this one is made.
        other = sentencepiece.SentencePieceProcessor(model_proto=proto)
        return in_graphs(processor, space_ids(other))


def is_text(dtype):
    """Whether a tokenizer with this dtype returns pieces instead of ids."""
    return "str" in str(dtype)
