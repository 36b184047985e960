"""Turns text into model inputs, for training and for generation."""

import threading

import keras
import keras_hub
import numpy as np

from keras_rgemma.checkpoints.folder import open_checkpoint, tokenizer_file
from keras_rgemma.checkpoints.hub import TOKENIZER
from keras_rgemma.checkpoints.presets import Presets, resolve
from keras_rgemma.config import check_count
from keras_rgemma.keras_internals.preprocessors import GenerationInputs, runs_in_graph
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.tokenizer import RGemmaTokenizer
from keras_rgemma.text.datasets import is_sliced
from keras_rgemma.text.examples import check_no_labels, rows

# Threads of grain build one layer at a time. No attribute of the layer, which is pickled.
_BUILDING = threading.Lock()


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaCausalLMPreprocessor(GenerationInputs, keras_hub.models.CausalLMPreprocessor):
    """Tokenizes, adds the start and end tokens, pads or packs, and makes next-token labels.

    Args:
        tokenizer: `RGemmaTokenizer`.
        sequence_length: int, tokens of a training row, and the default bound of `generate`.
        add_start_token: bool.
        add_end_token: bool, in training.
        packing: bool, whether several examples share a row in training. `padding_mask` then counts
            the examples, and no example sees another; a text longer than a row is cut into several.
        **kwargs: of `keras_hub.models.CausalLMPreprocessor`.

    Call arguments:
        x: examples to learn from: a str or a batch of str; a dict of `prompts` and `responses`,
            where only responses count; or a list of conversations, each a list of dicts of `role`
            ("user" and "model" in turn) and `content`, where only the model's turns count.

    Returns:
        `(x, y, sample_weight)`: a dict of `token_ids` and `padding_mask` [B, sequence_length],
        the ids shifted by one, and 1 where a label counts. With `packing` there are fewer rows than
        examples. A longer text is cut; a warning says so for examples with a prompt.

    Example:
    ```python
    preprocessor = keras_rgemma.RGemmaCausalLMPreprocessor.from_preset(
        "rgemma_tiny_en", sequence_length=16
    )
    x, y, sample_weight = preprocessor(["In the beginning"])
    x, y, sample_weight = preprocessor({"prompts": ["In the"], "responses": [" beginning"]})
    ```
    """

    backbone_cls = RGemmaBackbone
    tokenizer_cls = RGemmaTokenizer
    presets = Presets()

    def __init__(
        self,
        tokenizer,
        sequence_length=1024,
        add_start_token=True,
        add_end_token=True,
        packing=False,
        **kwargs,
    ):
        super().__init__(
            tokenizer,
            sequence_length=check_count("sequence_length", sequence_length),
            add_start_token=add_start_token,
            add_end_token=add_end_token,
            **kwargs,
        )
        self.packing = bool(packing)

    def get_config(self):
        return {**super().get_config(), "packing": self.packing}

    def build(self, input_shape):
        with _BUILDING:
            if self.built:
                return
            super().build(input_shape)
            # It has no weights, but `quantize` of a model refuses layers that are not built.
            self.packer.built = True

    @classmethod
    def from_preset(cls, preset, *, revision=None, **kwargs):
        """Creates the layer from a preset; no weights are fetched.

        Args:
            preset, revision: see `RGemmaBackbone.from_preset`.
            **kwargs: arguments of the constructor.

        Raises:
            ValueError: the preset has no tokenizer. See `RGemmaBackbone.from_preset`, too.
        """
        folder = resolve(preset, TOKENIZER, revision)
        if tokenizer_file(folder) or open_checkpoint(folder):
            return cls(cls.tokenizer_cls.from_preset(folder), **kwargs)
        return super().from_preset(folder, **kwargs)

    def call(self, x, y=None, sample_weight=None, sequence_length=None):
        check_no_labels(y, sample_weight)
        if not (self.packing or isinstance(x, dict)) and is_sliced(x):
            return super().call(x, sequence_length=sequence_length)
        length = sequence_length or self.sequence_length
        if not runs_in_graph(self):
            outputs = rows(self, x, length)
            is_one = isinstance(x, dict) and isinstance(x.get("prompts"), (str, bytes))
            if is_one and not self.packing:
                return keras.tree.map_structure(lambda array: array[0], outputs)
            return outputs
        from keras_rgemma.text.tensorflow import python_rows

        return python_rows(lambda x: rows(self, x, length), x, length)

    def generation_inputs(self, x, sequence_length=None):
        """Returns `token_ids` and `padding_mask` of prompts, a dict; see `generate_preprocess`."""
        if not self.built:
            self.build(None)
        token_ids, padding_mask = self.packer(
            self.tokenizer(x),
            sequence_length=sequence_length,
            add_start_value=self.add_start_token,
            add_end_value=False,
        )
        return {"token_ids": token_ids, "padding_mask": padding_mask}

    def generate_postprocess(self, x):
        """Returns the text of a dict of `token_ids` and an integer or boolean `padding_mask`."""
        mask = x["padding_mask"]
        mask = np.asarray(mask) if isinstance(mask, (list, tuple)) else mask
        if "bool" not in str(mask.dtype):
            mask = mask != 0
        return super().generate_postprocess({**x, "padding_mask": mask})

    def prompt_token_ids(self, texts, continued=False):
        """Returns the token ids of prompts, with the start token and uncut.

        Args:
            texts: list of str.
            continued: bool, whether the prompts continue a text: then no start token is added and
                they may be empty.

        Returns:
            list of int32 arrays, one a prompt.

        Raises:
            ValueError: a prompt is empty and no start token is added.
        """
        ids = self.tokenizer.token_id_rows(texts)
        start = [self.tokenizer.start_token_id] if self.add_start_token and not continued else []
        prompts = [np.array([*start, *row], dtype="int32") for row in ids]
        for row, prompt in enumerate(prompts):
            if not (len(prompt) or continued):
                raise ValueError(
                    f"Prompt {row} is empty ({texts[row]!r}) and `add_start_token` is False, so "
                    "there is no token to start from. Pass some text, or a preprocessor with "
                    "`add_start_token=True`."
                )
        return prompts

    def text_of(self, rows):
        """Returns the text of token ids, without pads and start and end tokens.

        Args:
            rows: list of sequences of ints.

        Returns:
            list of str.
        """
        special = set(self.tokenizer.special_token_ids)
        # A model may have more ids than the vocabulary has tokens; these ids have no text.
        size = self.tokenizer.vocabulary_size()
        text_ids = [[int(id) for id in row if id not in special and id < size] for row in rows]
        return [self.tokenizer.detokenize(row) if row else "" for row in text_ids]
