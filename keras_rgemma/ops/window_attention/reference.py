"""Computes local attention by its definition, in NumPy, for comparison in tests."""

from collections.abc import Sequence

import numpy as np


def window_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    positions: np.ndarray,
    window: int,
    history: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Attends from each token of [B, T, H, K] to itself and the `window` tokens before it."""
    batch, length, heads, size = query.shape
    out = np.zeros_like(query)
    group = heads // key.shape[2]
    for b in range(batch):
        for t in range(length):
            position = positions[b, t]
            if position < 0:
                continue
            reach = min(position, window)
            seen = [(key[b, s], value[b, s]) for s in range(max(0, t - reach), t + 1)]
            for earlier in range(position - reach, position - t) if history is not None else ():
                slot = earlier % window
                seen.append((history[0][b, slot], history[1][b, slot]))
            for h in range(heads):
                keys = np.stack([k[h // group] for k, _ in seen])
                logits = keys @ query[b, t, h] * size**-0.5
                weights = np.exp(logits - logits.max())
                values = np.stack([v[h // group] for _, v in seen])
                out[b, t, h] = (weights / weights.sum()) @ values
    return out
