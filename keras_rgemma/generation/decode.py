"""The decode loop: one step, and stock samplers that call it until every row has ended."""

import copy

import keras
from keras import ops

from keras_rgemma.state.records import ModelState


def sample(
    model,
    sampler,
    tokens,
    index,
    budgets,
    state,
    stop_token_ids,
    prompt_hidden=(),
):
    """Lets a sampler write new tokens for rows whose prompts are in the state.

    The rows are aligned: each one's last prompt token, which the state has not consumed, stands at
    `index - 1`, so rows of different lengths never wait for each other. A step feeds the token
    before it exactly once. A row that has ended is frozen: its state no longer changes and the
    only token that it can go on with has probability one, so that the scores of its beams stay
    what they are, whatever its neighbours do.

    Args:
        model: a `keras.Model` with `step(token_ids, padding_mask, state)`, which returns hidden
            states [B, T, D] and a state, and `compute_logits(hidden)`, [..., D] to [..., V].
        sampler: a `keras_hub.samplers.Sampler`.
        tokens: int32 [B, C]. Columns from `index` on are written.
        index: int32 scalar, the first column to write; the sampler goes on to column C - 1.
        budgets: int32 [B], how many tokens each row may get.
        state: `ModelState`, after each row's prompt without its last token.
        stop_token_ids: tuple of ints; a row ends with any of them. May be empty.
        prompt_hidden: (), or for samplers that compare hidden states a pair: float [B, C, D],
            those of the prompt in columns that end at `index - 2`, and bool [B, C], where they
            are.

    Returns:
        A pair of int32 [B, C] (what a row holds after its first stop token or its budget has no
        meaning), and the `ModelState` after each row's last token, which it has not consumed; ()
        instead of that with a sampler from which it cannot be had.
    """
    filler = stop_token_ids[0] if stop_token_ids else 0

    def next_token(prompt, cache, index_):
        state, budget, ended_before = cache
        token = ops.take(prompt, index_ - 1, axis=1)
        ended = ops.logical_or(ended_before, budget <= 0)
        for stop in stop_token_ids:
            is_stop = ops.logical_and(token == stop, index_ > index)
            ended = ops.logical_or(ended, is_stop)
        # A sampler that compares hidden states wants that of a last token, too.
        frozen = ended_before if prompt_hidden else ended
        going = ops.cast(ops.logical_not(frozen), "int32")
        hidden, state = model.step(token[:, None], going[:, None], state)
        logits = model.compute_logits(hidden[:, 0])
        # Only the filler is possible for a row that has ended.
        forced = ops.where(ops.arange(logits.shape[-1]) == filler, 0.0, -float("inf"))
        logits = ops.where(ended[:, None], ops.cast(forced, logits.dtype), logits)
        return logits, hidden[:, 0], (state, budget - 1, ended)

    ended = ops.zeros_like(budgets, dtype="bool")
    cache = (state, budgets, ended)
    hidden_states = None
    if prompt_hidden:
        # Contrastive search wants the last prompt token, too. Columns without a token repeat it:
        # its largest similarity to the past then is the same as without them.
        _, last_hidden, _ = next_token(tokens, cache, index)
        hidden, known = prompt_hidden
        hidden_states = ops.where(known[:, :, None], hidden, last_hidden[:, None])
    columns = ops.arange(tokens.shape[1], dtype="int32")[None]
    sampler, loops = _recorded(sampler)
    written = sampler(
        next=next_token,
        prompt=tokens,
        cache=cache,
        index=index,
        mask=ops.logical_and(columns < index, ops.ones_like(tokens, dtype="bool")),
        stop_token_ids=stop_token_ids or None,
        hidden_states=hidden_states,
        model=model,
    )
    # One that compares hidden states runs ahead: its state has consumed the last token, too.
    return written, () if prompt_hidden else _state_after(written, loops)


def _recorded(sampler):
    """A copy of a sampler, and the list that its loops append their last variables to.

    Samplers return tokens alone, but keep what `next` returned among the variables of their loop.
    """
    loops, copied = [], copy.copy(sampler)

    def run_loop(*args, **kwargs):
        loops.append(sampler.run_loop(*args, **kwargs))
        return loops[-1]

    copied.run_loop = run_loop
    return copied, loops


def _state_after(written, loops):
    """The state of the rows that a sampler has written, from the last variables of its loop."""
    if len(loops) != 1 or not _is_ours(loops[0][1]):
        return ()
    prompt, (state, *_), *_ = loops[0]
    return _of_best_beams(state, prompt, written)


def _is_ours(cache):
    return isinstance(cache, tuple) and len(cache) == 3 and isinstance(cache[0], ModelState)


def _of_best_beams(state, prompt, written):
    """The rows of a state that belong to the beams that were chosen: those with the same tokens."""
    count = prompt.shape[0] // written.shape[0]
    if count == 1:
        return state
    beams = ops.reshape(prompt, (-1, count, prompt.shape[1]))
    same = ops.all(beams == written[:, None], axis=-1)
    chosen = ops.argmax(ops.cast(same, "int32"), axis=-1)
    rows = ops.cast(chosen, "int32") + count * ops.arange(written.shape[0], dtype="int32")
    return keras.tree.map_structure(lambda array: ops.take(array, rows, axis=0), state)
