"""Reads the messages of a conversation, and tokenizes them as a prompt and as an example."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_rgemma.shapes import check_text
from keras_rgemma.text.documents import Document

ROLES = ("user", "model")
_FORMAT = (
    "is a list of {'role': 'user', 'content': ...} and {'role': 'model', 'content': ...} in turn "
    "('assistant' is the same as 'model'), which may begin with {'role': 'system', ...}. A content "
    "is a str or a list of {'type': 'text', 'text': ...}."
)


def is_conversation(value: object) -> bool:
    """Checks whether a value is a list of messages, which begins with a dict of one."""
    messages = _as_list(value)
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and bool({"role", "content"} & set(first))


def read_messages(
    messages: Any, what: str = "A conversation", history: Sequence[Mapping[str, str]] = ()
) -> list[dict[str, str]]:
    """Reads messages as turns of "user" and "model".

    The system message, which may come first, goes in front of the first user's content with an
    empty line between, as in the chat template of Gemma 3. The parts of a content are joined as
    they are.

    Args:
        messages: list, tuple or array of dicts. `role` is "user" and "model" (or "assistant") in
            turn, after a first "system"; `content` is a str or a list of dicts `{"type": "text",
            "text": str}`.
        what: str, the name of the messages in errors.
        history: list of the turns before the messages, as this function returns them.

    Returns:
        A list of dicts of `role`, "user" or "model", and `content`, str. A system message that no
        other follows is returned as it is, see `waits_for_user`.

    Raises:
        ValueError: there is no message, or one is malformed or out of turn.
    """
    messages = _as_list(messages)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{what} {_FORMAT} Received: {reprlib.repr(messages)}.")
    system = history[0]["content"] if waits_for_user(history) else None
    num_before = 0 if waits_for_user(history) else len(history)
    turns = []
    for index, message in enumerate(messages):
        role, content = _read(message, f"{what} {_FORMAT} Received as message {index}: ")
        place = num_before + len(turns)
        expected = ROLES[place % 2]
        if role == "system" and system is None and place == 0:
            system = content
        elif role == expected:
            turns.append({"role": role, "content": _joined(system, content)})
            system = None
        else:
            raise ValueError(
                f"{what} {_FORMAT} Received as message {index} one of {role!r}, where one of "
                f"{expected!r} comes next: {reprlib.repr(message)}. Join the messages that one "
                "side sent in succession, and leave out those of others."
            )
    return turns or [{"role": "system", "content": system}]


def waits_for_user(turns: Sequence[Mapping[str, str]]) -> bool:
    """Checks whether turns are a system message, which the first user's message will hold."""
    return len(turns) == 1 and turns[0]["role"] == "system"


def read_history(history: Any) -> list[dict[str, str]]:
    """Reads the turns of a conversation before a user's message; `history` may be empty.

    Raises:
        ValueError: see `read_messages`, or the last turn is the user's.
    """
    history = _as_list(history)
    turns = [] if history == [] else read_messages(history, "A history")
    if turns and not waits_for_user(turns):
        check_ends(turns, "model", "A history")
    return turns


def _joined(system: str | None, content: str) -> str:
    """Puts the system message in front of a user's content."""
    is_empty = system is None or not system.strip()
    return content if is_empty else f"{system.strip()}\n\n{content.strip()}"


def _as_list(value: Any) -> Any:
    """Returns a tuple, or an array from a column of a file, as a list; other values as they are."""
    is_array = isinstance(value, np.ndarray) and value.ndim > 0
    return list(value) if is_array or isinstance(value, tuple) else value


def _read(message: Any, received: str) -> tuple[str, str]:
    """Returns the role and the text of a message; raises errors that begin with `received`."""
    received += reprlib.repr(message)
    if not isinstance(message, Mapping):
        raise ValueError(f"{received}, which is no dict.")
    role = "model" if message.get("role") == "assistant" else message.get("role")
    if role not in (*ROLES, "system"):
        raise ValueError(f"{received}, whose role is {role!r}.")
    if message.get("tool_calls") or message.get("function_call"):
        raise ValueError(f"{received}, which calls a tool. Write the call into the content.")
    content = _as_list(message.get("content"))
    if isinstance(content, list):
        return role, "".join(_part(part, received) for part in content)
    if not isinstance(content, (str, bytes)):
        raise ValueError(f"{received}, whose content is {reprlib.repr(content)}.")
    return role, check_text(content, "The content of a message")


def _part(part: Any, received: str) -> str:
    """Returns the text of a part of a content."""
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), (str, bytes)):
        raise ValueError(
            f"{received}, with a part that is no text: {reprlib.repr(part)}. The model reads text "
            "alone: leave images, audio and tools out."
        )
    return check_text(part["text"], "The content of a message")


def check_ends(turns: Sequence[Mapping[str, str]], role: str, what: str) -> None:
    """Raises ValueError if the last of several turns is not of a role.

    Args:
        turns: list as of `read_messages`.
        role: str, "user" or "model".
        what: str, the name of the turns, and the reason, for the error.
    """
    if turns[-1]["role"] != role:
        name = {"user": "the user's message", "model": "the model's answer"}[role]
        raise ValueError(
            f"{what} ends with {name}. The last message is the {turns[-1]['role']}'s: "
            f"{reprlib.repr(turns[-1])}."
        )


def turns_token_ids(
    tokenizer: Any, turns: Sequence[Mapping[str, str]], is_first: bool = True
) -> list[int]:
    """Returns the token ids of complete turns, each with its `<end_of_turn>`; a list of ints.

    Args:
        tokenizer: `RGemmaTokenizer`.
        turns: list as of `read_messages`.
        is_first: bool, whether a text begins with these turns.
    """
    _, end_of_turn = tokenizer.control_token_ids()
    ids = []
    for turn in turns:
        ids += tokenizer.turn_token_ids(turn["role"], turn["content"], is_first and not ids)
        ids.append(end_of_turn)
    return ids


def conversation(tokenizer: Any, turns: Any, num_prompt_turns: int = 0) -> Document:
    """Tokenizes a conversation as `Chat` does; the loss falls on the model's answers.

    Args:
        tokenizer: `RGemmaTokenizer`.
        turns: messages as of `read_messages`.
        num_prompt_turns: int, the number of messages at the beginning without a loss.

    Raises:
        ValueError: see `read_messages`, or the last turn is the user's.
    """
    turns, count = read_messages(turns), len(turns)
    check_ends(turns, "model", "A conversation to learn from")
    num_prompt_turns -= count - len(turns)  # a system message is a part of the first turn
    _, end_of_turn = tokenizer.control_token_ids()
    ids, loss_mask = [tokenizer.start_token_id], [False]
    for place, turn in enumerate(turns):
        is_answer = turn["role"] == "model"
        # An answer is tokenized alone, as the model will write it.
        heading = "" if is_answer else turn["content"]
        answer = tokenizer.literal_token_ids(turn["content"].strip()) if is_answer else []
        start = tokenizer.turn_token_ids(turn["role"], heading, is_first=place == 0)
        is_learnt = is_answer and place >= num_prompt_turns
        ids += [*start, *answer, end_of_turn]
        loss_mask += [False] * len(start) + [is_learnt] * (len(answer) + 1)
    return Document(ids, loss_mask, is_text=False)
