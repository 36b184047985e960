"""Computes the linear recurrence on JAX."""

import importlib

import jax

from keras_rgemma.ops.linear_recurrence.jax.loops import associative, loop

# A loop reads each byte once, which is the cost on a CPU; accelerators launch a kernel for each
# step of a loop, so they need the parallel form, or a kernel that has the loop inside.
BEST = {"cpu": "loop", "tpu": "pallas"}


def default_implementation():
    return BEST.get(jax.default_backend(), "associative")


def _pallas(x, a, initial_state):
    # Imported at the first use: Pallas for TPUs takes a moment that other devices need not wait.
    kernels = importlib.import_module("keras_rgemma.ops.linear_recurrence.jax.pallas")
    return kernels.linear_recurrence(x, a, initial_state)


IMPLEMENTATIONS = {"loop": loop, "associative": associative, "pallas": _pallas}
