"""Runs models of Keras in EleutherAI's evaluation harness, `lm_eval`."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import keras
import keras_hub
import lm_eval.api.registry
import lm_eval.models
import numpy as np
import tqdm.auto
from lm_eval.api.model import LM

from keras_rgemma.checkpoints.chat_template import TEMPLATE
from keras_rgemma.config import check_count
from keras_rgemma.evaluation.conversations import write_turns
from keras_rgemma.evaluation.generations import Options, answers, read_options
from keras_rgemma.evaluation.hub_model import HubModel
from keras_rgemma.evaluation.likelihoods import Likelihoods
from keras_rgemma.model.causal_lm import RGemmaCausalLM

NAME = "keras-rgemma"


@lm_eval.api.registry.register_model(NAME)
class HarnessModel(LM):
    """A causal language model of Keras that answers the requests of the harness.

    Texts begin with the start token, once. A context that several requests begin with, such as the
    examples of a few-shot task, is read once where the model is RecurrentGemma: its state goes on.

    Args:
        pretrained: str, a preset, folder or handle as of `from_preset`; or a
            `keras_hub.models.CausalLM` with a preprocessor. Sampling tasks compile it with their
            sampler.
        batch_size: int or str, the rows that are read or written at a time; "auto" for 8.
        dtype: of the weights and of computation.
        revision: str, of a preset on a hub.
        quantize: None, "int8" or "int4".
        library: "keras-rgemma", or "keras-hub" to load a model of another architecture, such as
            KerasHub's Gemma.
        shares_prefixes: bool, whether shared beginnings are read once.
        max_gen_toks: int, new tokens of an answer where the task names no number.
        progress: bool, whether bars are shown.
        device, max_batch_size: the harness passes these; Keras chooses the device.

    Raises:
        ValueError: `library` is unknown, or the model has no tokenizer.

    Example:
    ```python
    model = HarnessModel("rgemma_tiny_en", batch_size=16)
    lm_eval.simple_evaluate(model=model, tasks=["piqa"])
    ```
    """

    has_state: bool
    lm: Any
    tokenizer: Any
    batch_size: int
    shares_prefixes: bool
    max_gen_toks: int
    progress: bool
    pretrained: str

    def __init__(
        self,
        pretrained: Any = None,
        batch_size: int | str = 8,
        dtype: str | keras.DTypePolicy | None = None,
        revision: str | None = None,
        quantize: str | None = None,
        library: str = NAME,
        shares_prefixes: bool = True,
        max_gen_toks: int = 256,
        progress: bool = True,
        device: object | None = None,
        max_batch_size: object | None = None,
    ) -> None:
        super().__init__()
        del device, max_batch_size
        self.batch_size = _batch_size(batch_size)
        if pretrained is None:
            raise ValueError("`pretrained` names the model: --model_args pretrained=rgemma_2b_en.")
        lm = pretrained
        if isinstance(pretrained, str):
            lm = _load(pretrained, library, dtype=dtype, revision=revision)
        if getattr(lm.preprocessor, "tokenizer", None) is None:
            raise ValueError(
                "The harness asks in text: the model needs a preprocessor with a tokenizer. "
                f"Received one with preprocessor={lm.preprocessor!r}. Load it with "
                "`from_preset`, or set `lm.preprocessor`."
            )
        if quantize is not None:
            lm.quantize(quantize)
        self.has_state = isinstance(lm, RGemmaCausalLM)
        self.lm = lm if self.has_state else HubModel(lm)
        self.tokenizer = lm.preprocessor.tokenizer
        self.shares_prefixes = shares_prefixes and self.has_state
        self._sampler = None
        self.max_gen_toks = max_gen_toks
        self.progress = progress
        self.pretrained = pretrained if isinstance(pretrained, str) else type(lm).__name__

    @property
    def tokenizer_name(self) -> str:
        return self.pretrained.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the Jinja template of the format of conversations, for the harness' records."""
        if isinstance(chat_template, str):
            raise ValueError(
                "The model has one chat template. Pass `apply_chat_template` without a name. "
                f"Received: {chat_template!r}."
            )
        return TEMPLATE if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Writes messages in the format of conversations, as `RGemmaCausalLM.chat` does.

        Args:
            chat_history: list of dicts of `role` and `content`: a system message, which may come
                first, and user and assistant in turn.
            add_generation_prompt: bool, whether the model's turn begins; otherwise the last
                message is left open for the model to go on with.

        Returns:
            str, without the start token.

        Raises:
            ValueError: the vocabulary has no turns, or messages are malformed.
        """
        return write_turns(self.tokenizer, chat_history, add_generation_prompt)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Computes the log-probability of a continuation of each context.

        Args:
            requests: list of `Instance` with `args` (context, continuation), two str.
            disable_tqdm: bool, whether no progress is shown.

        Returns:
            A list of pairs: the log-probability, float, and whether each token of the continuation
            is the likeliest, bool.
        """
        pairs = [self._encode_pair(*request.args) for request in requests]
        return self._likelihoods("loglikelihood", requests, pairs, lambda x: x, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Computes the log-probability of each whole text after the start token, at any length."""
        pairs = [self._encode_pair("", *request.args) for request in requests]
        name = "loglikelihood_rolling"
        return self._likelihoods(name, requests, pairs, lambda x: x[0], disable_tqdm)

    def _likelihoods(
        self,
        name: str,
        requests: list[Any],
        pairs: list[tuple[list[int], list[int]]],
        answer_of: Callable[[tuple[float, bool]], Any],
        disable_tqdm: bool,
    ) -> list[Any]:
        """Computes likelihoods of token ids; the harness' cache gets each when it is known."""
        with self._bar("Scoring", requests, disable_tqdm) as bar:

            def done(index: int, result: tuple[float, bool]) -> None:
                self.cache_hook.add_partial(name, requests[index].args, answer_of(result))
                bar.update()

            results = Likelihoods(self.lm, pairs, self.batch_size, done).run(self.shares_prefixes)
        return list(map(answer_of, results))

    def _bar(self, name: str, requests: list[Any], is_quiet: bool) -> tqdm.auto.tqdm:
        """Opens a bar of progress over requests."""
        is_quiet = is_quiet or not self.progress
        return tqdm.auto.tqdm(total=len(requests), desc=name, unit=" requests", disable=is_quiet)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the token ids of a context, with the start token, and of its continuation.

        White space at the end of a context belongs to the token after it, as the harness has it.
        """
        text = context.rstrip()
        before, whole = self._encode(text), self._encode(context + continuation)
        return before, whole[len(before) :]

    def _encode(self, text: str) -> list[int]:
        """Returns the token ids of a text behind the start token, which comes once."""
        ids = np.asarray(self.tokenizer([text])[0]).tolist() if text else []
        start = self.tokenizer.start_token_id
        return ids if ids[:1] == [start] else [start, *ids]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each context up to a stop string; returns the new texts."""
        answers = [""] * len(requests)
        groups = collections.defaultdict(list)
        for index, request in enumerate(requests):
            groups[read_options(request.args[1], self.max_gen_toks)].append(index)
        with self._bar("Answering", requests, disable_tqdm) as bar:
            for options, indices in groups.items():
                contexts = [requests[index].args[0] for index in indices]
                for place, text in self._answers(contexts, options):
                    request = requests[indices[place]]
                    answers[indices[place]] = text
                    self.cache_hook.add_partial("generate_until", request.args, text)
                    bar.update()
        return answers

    def _answers(self, contexts: list[str], options: Options) -> Iterator[tuple[int, str]]:
        """Iterates over pairs of the index of a context and its answer."""
        if options.sampler != self._sampler:  # a sampler is compiled anew
            name, settings = self._sampler = options.sampler
            sampler = {"class_name": name, "config": dict(settings)}
            self.lm.compile(sampler=keras_hub.samplers.get(sampler if settings else name))
        rows = [self._encode(context) for context in contexts]
        if self.has_state:
            return answers(self.lm, rows, options, self.batch_size, self.shares_prefixes)
        return self.lm.answers(contexts, list(map(len, rows)), options, self.batch_size)


def _load(preset: str, library: str, **options: Any) -> Any:
    """Loads a model; see `HarnessModel`."""
    options = {name: value for name, value in options.items() if value is not None}
    if library == NAME:
        return RGemmaCausalLM.from_preset(preset, **options)
    if library == "keras-hub":
        return keras_hub.models.CausalLM.from_preset(preset, **options)
    raise ValueError(f"`library` must be {NAME!r} or 'keras-hub'. Received: {library!r}.")


def _batch_size(value: int | str) -> int:
    """Reads a batch size, which the harness' command passes as a str."""
    if isinstance(value, str):
        is_auto = value.partition(":")[0] == "auto"  # "auto:4" asks other models again
        value = 8 if is_auto else int(value) if value.isdecimal() else value
    return check_count("batch_size", value)
