"""Divides rows over time among eight virtual CPU devices, in a process of its own.

`python long_rows.py SCENARIO` calls the function of that name, as `eight_devices.py` does.
"""

import json
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np

import keras_rgemma
import tiny
from keras_rgemma.layers.causal_conv1d import CausalConv1D
from keras_rgemma.ops.documents import document_positions
from keras_rgemma.ops.linear_recurrence import linear_recurrence
from keras_rgemma.ops.window_attention import window_attention
from keras_rgemma.state.records import AttentionState

AXES = ("batch", "model", "sequence")


def distribute(shape=None, sequence="sequence", **options):
    """Sets a distribution over a mesh of `AXES`, or none."""
    distribution = None
    if shape is not None:
        mesh = keras.distribution.DeviceMesh(shape, AXES)
        layouts = keras_rgemma.RGemmaBackbone.get_layout_map(
            mesh, sequence_parallel_dim_name=sequence, **options
        )
        distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    keras.distribution.set_distribution(distribution)


def difference(ones, others):
    """The largest difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(ones), jax.tree.leaves(others), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def gradients(function, *arrays):
    """The outputs of a function, and the gradients of a weighted sum of all its numbers."""

    @jax.jit
    def run(*arrays):
        outputs, pullback = jax.vjp(lambda *x: jax.tree.leaves(function(*x)), *arrays)
        random = np.random.RandomState(3)
        weights = [jnp.asarray(random.normal(size=x.shape), x.dtype) for x in outputs]
        return outputs, pullback(weights)

    return run(*arrays)


def compared(mesh, function, *arrays, **options):
    """The difference between a mesh and one device, of outputs and of gradients."""
    distribute()
    one = gradients(function, *arrays)
    distribute(mesh, **options)
    with keras.distribution.distribution().scope():
        several = gradients(function, *arrays)
    return [difference(x, y) for x, y in zip(one, several, strict=True)]


def masks(length, rows=2):
    """A padding mask with documents that end beside the borders of parts, and pads on the left."""
    mask = np.ones((rows, length), "int32")
    mask[0, length // 8 :] = 2
    mask[0, length // 4 + 1 :] = 3
    mask[0, length // 2 - 1 :] = 4
    mask[1, : length // 4 + 3] = 0
    return mask


def operations():
    random = np.random.RandomState(1)
    normal = lambda *shape: random.normal(size=shape).astype("float32")  # noqa: E731
    found = {}
    for mesh in ((1, 1, 8), (2, 2, 2)):
        for length in (8, 48):
            x, state = normal(2, length, 6), normal(2, 6)
            a = random.uniform(0, 1, x.shape).astype("float32")
            a[:, :: length // 4] = 0.0
            for name in ("loop", "associative"):
                run = lambda *x, name=name: linear_recurrence(*x, implementation=name)  # noqa: E731
                found[f"{name}, {mesh}, {length}"] = compared(mesh, run, x, a, state)
            places = document_positions(masks(length))
            goes_on = jnp.asarray(np.arange(length)[None] + np.array([[3], [7]]), "int32")
            conv, x = CausalConv1D(4), normal(2, length, 6)
            conv.build(x.shape)
            before = normal(2, 3, 6)
            run = lambda x, kernel, bias, conv=conv: conv.bound(  # noqa: E731
                lambda part: {id(conv.kernel): kernel, id(conv.bias): bias}.get(id(part), part)
            )(x, places)
            found[f"conv, {mesh}, {length}"] = compared(mesh, run, x, normal(4, 6), normal(6))
            run = lambda x, state, conv=conv: conv(x, goes_on, state, return_state=True)  # noqa: E731
            found[f"conv with a state, {mesh}, {length}"] = compared(mesh, run, x, before)
            query, key, value = normal(2, length, 4, 6), normal(2, length, 1, 6), x[:, :, None]
            for window in (3, 7, 17):
                run = lambda *x, window=window: window_attention(*x, places, window)  # noqa: E731
                name = f"attention, {mesh}, {length}, {window}"
                # A query of a pad sees itself alone.
                found[name] = compared(mesh, run, query, key, value)
                ring = AttentionState(normal(2, window, 1, 6), normal(2, window, 1, 6))
                run = lambda *x, window=window: window_attention(*x[:3], goes_on, window, x[3])  # noqa: E731
                found[f"{name} with a state"] = compared(mesh, run, query, key, value, ring)
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
