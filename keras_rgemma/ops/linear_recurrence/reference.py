"""Computes the linear recurrence by its definition, in NumPy, for comparison in tests."""

import numpy as np


def linear_recurrence(
    x: np.ndarray, a: np.ndarray, initial_state: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all h [B, T, L] of `h_t = a_t * h_{t-1} + x_t` and the last h, in the dtype of x."""
    h_BL = np.zeros_like(x[:, 0]) if initial_state is None else initial_state
    h_BTL = np.empty_like(x)
    for t in range(x.shape[1]):
        h_BL = a[:, t] * h_BL + x[:, t]
        h_BTL[:, t] = h_BL
    return h_BTL, h_BL


def linear_recurrence_gradient(
    x: np.ndarray,
    a: np.ndarray,
    initial_state: np.ndarray,
    h_gradient: np.ndarray,
    last_gradient: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the gradients of x, a and the initial state for the gradients of both outputs."""
    h_BTL, _ = linear_recurrence(x, a, initial_state)
    before_BTL = np.concatenate([initial_state[:, None], h_BTL[:, :-1]], axis=1)
    x_gradient = np.empty_like(x)
    carried_BL = last_gradient
    for t in reversed(range(x.shape[1])):
        x_gradient[:, t] = h_gradient[:, t] + carried_BL
        carried_BL = a[:, t] * x_gradient[:, t]
    return x_gradient, x_gradient * before_BTL, carried_BL
