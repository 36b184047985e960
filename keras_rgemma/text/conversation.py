"""Checks the history of a conversation, and tokenizes it as an example to learn from."""

from keras_rgemma.text.documents import Document

ROLES = ("user", "model")


def check_history(history):
    """Copies a history, if it is well formed.

    Args:
        history: list of dicts with "role" and "content".

    Raises:
        ValueError: the history is malformed.
    """
    messages = []
    for place, message in enumerate(history):
        role = ROLES[place % 2]
        is_message = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not is_message or message.get("role") != role:
            raise ValueError(
                "A history is a list of {'role': 'user', 'content': ...} and {'role': 'model', "
                "'content': ...} in turn (what others call 'assistant' is 'model'). Received as "
                f"message {place}: {message!r}."
            )
        messages.append({"role": role, "content": message["content"]})
    if len(messages) % 2:
        raise ValueError("A history ends with the model's answer. The last message is the user's.")
    return messages


def conversation(tokenizer, turns):
    """Tokenizes a conversation as `Chat` does; the loss falls on the model's answers."""
    _, end_of_turn = tokenizer.control_token_ids()
    ids, loss_mask = [tokenizer.start_token_id], [False]
    for place, turn in enumerate(check_history(turns)):
        is_answer = turn["role"] == "model"
        # An answer is tokenized alone, as the model will write it.
        heading = "" if is_answer else turn["content"]
        answer = tokenizer.literal_token_ids(turn["content"].strip()) if is_answer else []
        start = tokenizer.turn_token_ids(turn["role"], heading, is_first=place == 0)
        ids += [*start, *answer, end_of_turn]
        loss_mask += [False] * len(start) + [is_answer] * (len(answer) + 1)
    return Document(ids, loss_mask, is_text=False)
