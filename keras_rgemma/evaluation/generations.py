"""Continues the contexts of the harness, and reads the options that a task gives."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_rgemma.evaluation.prefixes import shared_beginnings
from keras_rgemma.generation.prompts import pad_right
from keras_rgemma.model.causal_lm import RGemmaCausalLM

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_READ = {*_LIMITS, "until", "do_sample", "temperature", "top_k", "top_p"}
_SHORTEST = 64  # tokens of a beginning that contexts go on from
_GREEDY = "greedy", ()


class Options(NamedTuple):
    """Describes how a context is continued.

    Attributes:
        until: tuple of str; the text ends before the first of them.
        max_new_tokens: int.
        sampler: pair of the name of a sampler of KerasHub and its settings, a tuple of pairs.
    """

    until: tuple[str, ...]
    max_new_tokens: int
    sampler: tuple[str, tuple[tuple[str, Any], ...]]


def read_options(task: Mapping[str, Any], max_new_tokens: int) -> Options:
    """Reads the options that a task gives with a context.

    Args:
        task: dict of the harness: `until`, `max_gen_toks` (or a synonym), `do_sample`,
            `temperature`, `top_k`, `top_p`.
        max_new_tokens: int, used where the task names no number.

    Returns:
        `Options`.

    Raises:
        ValueError: the task has other options.
    """
    unknown = sorted(set(task) - _READ)
    if unknown:
        raise ValueError(
            f"The options {unknown} of a generation are not known. Use `until`, `max_gen_toks`, "
            "`do_sample`, `temperature`, `top_k` and `top_p`."
        )
    until = task.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    given = [task[name] for name in _LIMITS if task.get(name) is not None]
    limit = int(given[0]) if given else max_new_tokens
    return Options(tuple(filter(None, until)), limit, _sampler(task))


def _sampler(task: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, Any], ...]]:
    temperature = float(task.get("temperature") or 0.0)
    if not task.get("do_sample", temperature > 0):
        return _GREEDY
    settings = {"temperature": temperature or 1.0}
    if task.get("top_p"):
        name, settings = "top_p", {**settings, "p": float(task["top_p"]), "k": task.get("top_k")}
    elif task.get("top_k"):
        name, settings = "top_k", {**settings, "k": int(task["top_k"])}
    else:
        name = "random"
    return name, tuple(sorted(settings.items()))


def answers(
    lm: RGemmaCausalLM,
    rows: Sequence[list[int]],
    options: Options,
    batch_size: int,
    shares_prefixes: bool,
) -> Iterator[tuple[int, str]]:
    """Continues rows of tokens, and reads a beginning that several share once.

    Args:
        lm: `RGemmaCausalLM`.
        rows: list of lists of token ids.
        options: `Options`.
        batch_size: int, the rows that are written at a time.
        shares_prefixes: bool.

    Yields:
        Pairs of the index of a row and the new text before its stop string.
    """
    tokenizer = lm.preprocessor.tokenizer
    ends = {tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", tokenizer.end_token_id)}
    everything = range(len(rows))
    tree = shared_beginnings(rows, _SHORTEST) if shares_prefixes else None
    parts = [([], everything if tree is None else tree.leaves)]
    parts += [(branch.tokens, branch.rows()) for branch in (tree.branches if tree else ())]
    for beginning, indices in parts:
        if not indices:
            continue
        result = lm.generate(
            padded([rows[index][len(beginning) :] for index in indices]),
            state=lm.prefill(beginning) if beginning else None,
            batch_size=batch_size,
            max_new_tokens=options.max_new_tokens,
            stop=options.until or None,
            strip_prompt=True,
        )
        lengths = np.asarray(result["padding_mask"]).astype(bool).sum(axis=1)
        for index, ids, length in zip(indices, result["token_ids"], lengths, strict=True):
            new = np.asarray(ids)[:length].tolist()
            new = new[:-1] if new[-1:] and new[-1] in ends else new
            (text,) = lm.preprocessor.text_of([new])
            yield index, before(text, options.until)


def before(text: str, until: Sequence[str]) -> str:
    """Cuts a text before the first of several strings."""
    return text[: min([text.index(stop) for stop in until if stop in text], default=len(text))]


def padded(rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Pads rows of token ids on the right: a dict of int32 arrays [B, T]."""
    token_ids, mask = pad_right(rows, max(1, *map(len, rows)))
    return {"token_ids": token_ids, "padding_mask": mask}
