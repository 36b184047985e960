"""Writes conversations as texts, in the format that instruction-tuned models are trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_rgemma.text.conversation import read_messages

_START, _END = "<start_of_turn>", "<end_of_turn>"


def write_turns(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], starts_answer: bool = True
) -> str:
    """Writes messages as one text whose token ids are those of `RGemmaCausalLM.chat`.

    Args:
        tokenizer: tokenizer of KerasHub, whose vocabulary must have the control tokens of turns.
        messages: list of dicts of `role` and `content`.
        starts_answer: bool, whether the model's turn begins behind them; otherwise the last message
            is left open.

    Returns:
        str, without the start token.

    Raises:
        ValueError: the vocabulary has no turns, or the messages are malformed.
    """
    missing = [x for x in (_START, _END) if tokenizer.id_to_token(_id(tokenizer, x)) != x]
    if missing:
        raise ValueError(
            f"The vocabulary has no {' and '.join(missing)}, so the model takes no chat template. "
            "Ask without `apply_chat_template`."
        )
    turns = read_messages(messages)
    texts = [f"{_START}{turn['role']}\n{turn['content'].strip()}{_END}" for turn in turns]
    if starts_answer:
        return "\n".join([*texts, f"{_START}model\n"])
    return "\n".join(texts).removesuffix(_END)


def _id(tokenizer: Any, token: str) -> int:
    """Returns the id of a token; that of another one where the vocabulary lacks it."""
    return int(tokenizer.token_to_id(token))
