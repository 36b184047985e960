"""Turns text into model inputs, for training and for generation."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import keras_hub
import numpy as np
from keras.utils import pack_x_y_sample_weight

from keras_rgemma.checkpoints.folder import open_checkpoint, tokenizer_file
from keras_rgemma.checkpoints.hub import TOKENIZER
from keras_rgemma.checkpoints.presets import Presets, resolve
from keras_rgemma.config import check_count
from keras_rgemma.keras_internals.preprocessors import (
    GenerationInputs,
    runs_in_grain,
    runs_in_graph,
)
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.tokenizer import RGemmaTokenizer
from keras_rgemma.text.batches import complete, read_all
from keras_rgemma.text.examples import check_columns, check_no_labels, find_columns
from keras_rgemma.text.forms import is_row, is_text
from keras_rgemma.text.rows import make_rows
from keras_rgemma.text.sources import is_prepared
from keras_rgemma.types import StrPath

LOST = ("auto", "error", "skip", "keep")

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
        columns: dict of names among `prompts`, `responses`, `text` and `messages` to the names
            that the data have, such as `{"prompts": "instruction", "responses": "output"}`.
        lost_responses: str, what becomes of an example whose response does not fit into a row at
            all, since its prompt fills it. "error" refuses the data, "skip" leaves the example
            out, "keep" gives it a row that teaches nothing. "auto" is "error" in `fit` and
            `evaluate` with data in memory, "skip" there with data that are read lazily, and "keep"
            where each example has its row: in calls of the preprocessor, and in `predict`. A
            warning counts examples that are skipped or kept. (A call or `predict` skips none.)
        **kwargs: of `keras_hub.models.CausalLMPreprocessor`.

    Call arguments:
        x: examples to learn from, in every form of docs/data.md: texts, and rows of token ids;
            prompts with responses, where only responses count; conversations, each a list of dicts
            of `role` ("user" and "model" in turn) and `content`, where only the model's turns
            count. Rows that were made before come back as they are.
        sample_weight: weights of the examples, one each.

    Returns:
        `(x, y, sample_weight)`: a dict of `token_ids` and `padding_mask` [B, sequence_length],
        the ids shifted by one, and the weight of each label, 1 or 0 without `sample_weight`. With
        `packing` there are fewer rows than examples. A longer text is cut; a warning says so for
        examples with a prompt.

    Example:
    ```python
    preprocessor = keras_rgemma.RGemmaCausalLMPreprocessor.from_preset(
        "rgemma_tiny_en", sequence_length=16
    )
    x, y, sample_weight = preprocessor(["In the beginning"])
    x, y, sample_weight = preprocessor({"prompts": ["In the"], "responses": [" beginning"]})
    preprocessor.columns = {"prompts": "question", "responses": "answer"}
    preprocessor.lost_responses = "skip"
    keras_rgemma.RGemmaCausalLMPreprocessor.presets
    ```
    """

    backbone_cls = RGemmaBackbone
    tokenizer_cls = RGemmaTokenizer
    presets = Presets()
    """dict of the built-in presets by name, each a dict with `description`, `parameter_count`,
    `weights`."""

    def __init__(
        self,
        tokenizer: RGemmaTokenizer,
        sequence_length: int = 1024,
        add_start_token: bool = True,
        add_end_token: bool = True,
        packing: bool = False,
        columns: Mapping[str, str] | None = None,
        lost_responses: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tokenizer,
            sequence_length=check_count("sequence_length", sequence_length),
            add_start_token=add_start_token,
            add_end_token=add_end_token,
            **kwargs,
        )
        self.packing = bool(packing)
        self.columns = columns
        self.lost_responses = lost_responses

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "packing": self.packing,
            "columns": self.columns,
            "lost_responses": self.lost_responses,
        }

    @property
    def columns(self) -> dict[str, str]:
        """The names of columns, a dict; see the arguments."""
        return dict(self._columns)

    @columns.setter
    def columns(self, value: Mapping[str, str] | None) -> None:
        self._columns = check_columns(value)

    @property
    def lost_responses(self) -> str:
        """The treatment of responses that do not fit into a row, a str; see the arguments."""
        return self._lost_responses

    @lost_responses.setter
    def lost_responses(self, value: str) -> None:
        if value not in LOST:
            raise ValueError(f"`lost_responses` is one of {LOST}. Received: {value!r}.")
        self._lost_responses = value

    def build(self, input_shape: Any) -> None:
        with _BUILDING:
            if self.built:
                return
            super().build(input_shape)
            # It has no weights, but `quantize` of a model refuses layers that are not built.
            self.packer.built = True

    @classmethod
    def from_preset(cls, preset: StrPath, *, revision: str | None = None, **kwargs: Any) -> Self:
        """Creates the layer from a preset; no weights are fetched.

        Args:
            preset, revision: see `RGemmaBackbone.from_preset`.
            **kwargs: arguments of the constructor.

        Raises:
            ValueError: the preset has no tokenizer. See `RGemmaBackbone.from_preset`, too.

        Example:
        ```python
        preprocessor = keras_rgemma.RGemmaCausalLMPreprocessor.from_preset(
            "rgemma_tiny_en", sequence_length=64, packing=True
        )
        ```
        """
        folder = resolve(preset, TOKENIZER, revision)
        if tokenizer_file(folder) or open_checkpoint(folder):
            return cls(cls.tokenizer_cls.from_preset(folder), **kwargs)
        return super().from_preset(folder, **kwargs)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        # KerasHub takes a tuple of two or three for x, y and weights.
        if isinstance(x, tuple) and not args and all(map(is_text, x)) and not runs_in_grain():
            x = list(x)
        return super().__call__(x, *args, **kwargs)

    def call(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any | None = None,
        sequence_length: int | None = None,
    ) -> Any:
        length = sequence_length or self.sequence_length
        if is_prepared(x):
            is_bare = y is None and sample_weight is None and not runs_in_graph(self)
            return complete((x,)) if is_bare else pack_x_y_sample_weight(x, y, sample_weight)
        check_no_labels(y)
        if not runs_in_graph(self):
            return self._rows(x, sample_weight, length)
        check_no_labels(sample_weight)
        from keras_rgemma.text.tensorflow import is_one_example, python_rows

        names = find_columns(x, self.columns)[1] if is_row(x) else None
        is_one = is_one_example(x, names) and not self.packing
        shape = (length,) if is_one else (None, length)
        return python_rows(lambda x: self._rows(x, None, length), x, shape)

    def _rows(self, x: Any, sample_weight: Any, length: int) -> Any:
        """Makes rows of examples in memory; one example alone gets a row without a batch axis."""
        examples, is_batch = read_all(x, self.columns)
        lost = "error" if self.lost_responses == "error" else "keep"
        settings = {"packing": self.packing, "lost": lost, "weights": sample_weight}
        outputs = make_rows(self, examples, length, warns=False, **settings)
        if is_batch or self.packing:
            return outputs
        return keras.tree.map_structure(lambda array: array[0], outputs)

    def generation_inputs(self, x: Any, sequence_length: int | None = None) -> dict[str, Any]:
        """Returns `token_ids` and `padding_mask` of prompts, a dict; see `generate_preprocess`.

        Example:
        ```python
        lm.preprocessor.generation_inputs(["In the beginning"], sequence_length=16)
        ```
        """
        if not self.built:
            self.build(None)
        token_ids, padding_mask = self.packer(
            self.tokenizer(x),
            sequence_length=sequence_length,
            add_start_value=self.add_start_token,
            add_end_value=False,
        )
        return {"token_ids": token_ids, "padding_mask": padding_mask}

    def generate_postprocess(self, x: Mapping[str, Any]) -> Any:
        """Returns the text of a dict of `token_ids` and an integer or boolean `padding_mask`.

        Example:
        ```python
        inputs = lm.preprocessor.generation_inputs(["In the beginning"], sequence_length=16)
        lm.preprocessor.generate_postprocess(inputs)
        ```
        """
        mask = x["padding_mask"]
        mask = np.asarray(mask) if isinstance(mask, (list, tuple)) else mask
        if "bool" not in str(mask.dtype):
            mask = mask != 0
        return super().generate_postprocess({**x, "padding_mask": mask})

    def prompt_token_ids(self, texts: Sequence[str], continued: bool = False) -> list[np.ndarray]:
        """Returns the token ids of prompts, with the start token and uncut.

        Args:
            texts: list of str.
            continued: bool, whether the prompts continue a text: then no start token is added and
                they may be empty.

        Returns:
            list of int32 arrays, one a prompt.

        Raises:
            ValueError: a prompt is empty and no start token is added.

        Example:
        ```python
        lm.preprocessor.prompt_token_ids(["In the beginning", "And"])
        ```
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

    def text_of(self, rows: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        """Returns the text of token ids, without pads and start and end tokens.

        Args:
            rows: list of sequences of ints.

        Returns:
            list of str.

        Example:
        ```python
        lm.preprocessor.text_of([[2, 300, 301], [2, 302]])
        ```
        """
        special = set(self.tokenizer.special_token_ids)
        # A model may have more ids than the vocabulary has tokens; these ids have no text.
        size = self.tokenizer.vocabulary_size()
        text_ids = [[int(id) for id in row if id not in special and id < size] for row in rows]
        return [self.tokenizer.detokenize(row) if row else "" for row in text_ids]
