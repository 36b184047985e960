"""Computes the linear recurrence on TPUs in one pass over memory, forwards and backwards."""

import functools

import jax
import jax.numpy as jnp

from keras_rgemma.ops.linear_recurrence.pallas.jax import kernels
from keras_rgemma.ops.linear_recurrence.pallas.jax.operation import operation


def linear_recurrence(x, a, initial_state, interpret=False):
    """Computes `linear_recurrence`; reads x and a as they are if they are bfloat16 or float32.

    In a program for several devices each of them runs the kernels on its rows and channels,
    without communication; if T is sharded, it is gathered. Under `jax.vmap` the mapped axis joins
    B. It was compiled for TPUs, never run on one.

    Args:
        x, a: float [B, T, L].
        initial_state: float32 [B, L].
        interpret: bool, runs the kernels in Pallas' interpreter: slowly, and on any device.

    Raises:
        ValueError: the program is compiled for another device than a TPU, without `interpret`.
    """
    x, a = (v if v.dtype == jnp.bfloat16 else v.astype("float32") for v in (x, a))
    return _recurrence((interpret, x.dtype.name), x, a, initial_state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(options, x, a, initial_state):
    if x.shape[1] == 1:
        h_BL = a[:, 0].astype("float32") * initial_state + x[:, 0]
        return h_BL[:, None], h_BL
    (h_BTL,) = _run_forward(options, x, a, initial_state)
    return h_BTL, h_BTL[:, -1]


def _forward(options, x, a, initial_state):
    h_BTL, last_BL = _recurrence(options, x, a, initial_state)
    return (h_BTL, last_BL), (a, initial_state, h_BTL)


def _backward(options, residuals, gradients):
    a, initial_state, h_BTL = residuals
    h_gradient, last_gradient = gradients
    return tuple(_run_backward(options, h_gradient, a, h_BTL, initial_state, last_gradient))


_recurrence.defvjp(_forward, _backward)

_run_forward = operation(kernels.forward, "b t l, b t l, b l -> b t l")
_run_backward = operation(
    kernels.backward, "b t l, b t l, b t l, b l, b l -> b t l, b t l, b l"
)
