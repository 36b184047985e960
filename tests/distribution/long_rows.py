"""Divides rows over time among eight virtual CPU devices, in a process of its own.

`python long_rows.py SCENARIO` calls the function of that name, as `eight_devices.py` does.
"""

import functools
import json
import sys

import eight_devices
import jax
import jax.numpy as jnp
import keras
import numpy as np
from eight_devices import raised, ready

import keras_rgemma
import tiny
from keras_rgemma.distribution.collectives import collectives
from keras_rgemma.layers.causal_conv1d import causal_conv1d
from keras_rgemma.ops.cross_entropy import cross_entropy
from keras_rgemma.ops.documents import document_positions
from keras_rgemma.ops.linear_recurrence import linear_recurrence
from keras_rgemma.ops.linear_recurrence.jax import pallas
from keras_rgemma.ops.window_attention import window_attention

AXES = ("batch", "model", "sequence")


def distribute(shape=None, sequence="sequence", **options):
    """Sets a distribution over a mesh of `AXES`, or none."""
    options |= {"axes": AXES, "sequence_parallel_dim_name": sequence}
    eight_devices.distribute(shape, **options)


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
    """Differences of operations and of their gradients, with and without states."""
    random = np.random.RandomState(1)
    normal = lambda *shape: random.normal(size=shape).astype("float32")  # noqa: E731
    found = {}
    for mesh, length in (((1, 1, 8), 8), ((1, 1, 8), 48), ((2, 2, 2), 48)):
        case = f"{mesh}, {length}"
        x, a = normal(2, length, 6), random.uniform(0, 1, (2, length, 6)).astype("float32")
        a[:, 1 :: length // 4] = 0.0
        for name in ("loop", "associative"):
            run = functools.partial(linear_recurrence, implementation=name)
            found[f"{name}, {case}"] = compared(mesh, run, x, a, normal(2, 6))
        if mesh == (2, 2, 2):
            run = functools.partial(pallas.linear_recurrence, interpret=True)
            found[f"pallas, {case}"] = compared(mesh, run, x, a, normal(2, 6))
        packed = document_positions(masks(length))
        # Rows that go on: the first has had 3 tokens, the second 7.
        goes_on = jnp.arange(length, dtype="int32")[None] + jnp.array([[3], [7]], "int32")
        conv = functools.partial(causal_conv1d, places=packed)
        run = lambda x, kernel, bias, conv=conv: conv(x, kernel=kernel, bias=bias)  # noqa: E731
        found[f"conv, {case}"] = compared(mesh, run, x, normal(4, 6), normal(6))
        weights = {"kernel": normal(4, 6), "bias": normal(6)}
        conv = functools.partial(causal_conv1d, places=goes_on, return_state=True, **weights)
        run = lambda x, state, conv=conv: conv(x, state=state)  # noqa: E731
        found[f"conv with a state, {case}"] = compared(mesh, run, x, normal(2, 3, 6))
        # The window is shorter than a part, or as long as several.
        for window in {8: (3,), 48: (17,)}[length] if mesh == (1, 1, 8) else (7,):
            arrays = [normal(2, length, 4, 6), normal(2, length, 1, 6), normal(2, length, 1, 6)]
            name = f"attention, {window}, {case}"
            run = functools.partial(window_attention, places=packed, window=window)
            found[name] = compared(mesh, run, *arrays)
            run = functools.partial(window_attention, places=goes_on, window=window)
            ring = normal(2, window, 1, 6), normal(2, window, 1, 6)
            run = lambda *x, run=run: run(*x[:3], history=x[3])  # noqa: E731
            found[f"{name} with a state"] = compared(mesh, run, *arrays, ring)
    return found


SIZES = {
    "vocabulary_size": 400,
    "num_layers": 2,
    "block_types": ("recurrent", "attention"),
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "num_query_heads": 2,
    "head_dim": 4,
    "lru_dim": 24,
    "sliding_window_size": 7,
    "gradient_checkpointing": True,
}
# Of each: the mesh, the sequence axis, other options of the layout map, whether LoRA is trained.
TRAINED = [
    ((2, 1, 4), "sequence", {}, True),
    ((2, 2, 2), "sequence", {"fully_sharded": True}, False),
    ((2, 4, 1), "model", {}, False),
    ((2, 4, 1), "model", {}, True),
]
LENGTH, STEPS = 48, 3


def made(values=None, is_lora=False):
    """A compiled model with given weights, or random ones."""
    lm = tiny.causal_lm(None, **SIZES)
    if values is None:
        tiny.randomize(lm)
    else:
        for weight, value in zip(lm.weights, values, strict=True):
            weight.assign(value)
    return ready(lm, 4 if is_lora else None)


def fitted(lm):
    """The losses of some steps and all weights after them."""
    random = np.random.RandomState(0)
    ids, labels = random.randint(4, 400, (2, 2 * STEPS, LENGTH)).astype("int32")
    mask, seen = np.tile(masks(LENGTH), (STEPS, 1)), []
    listed = lambda _, logs: seen.append(logs["loss"])  # noqa: E731
    lm.fit(
        {"token_ids": ids, "padding_mask": mask},
        labels,
        sample_weight=(mask > 0).astype("float32"),
        batch_size=2,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=listed)],
    )
    return seen, [np.asarray(weight.value) for weight in lm.weights]


def training():
    """Differences from one device after some steps."""
    keras.utils.set_random_seed(0)
    distribute()
    values = [np.asarray(weight.value) for weight in made().weights]
    ones, results = {}, []
    for mesh, sequence, options, is_lora in TRAINED:
        distribute()
        if is_lora not in ones:
            ones[is_lora] = fitted(made(values, is_lora))
        distribute(mesh, sequence, **options)
        lm = made(values, is_lora)
        before = [np.asarray(weight.value) for weight in lm.trainable_weights]
        losses, weights = fitted(lm)
        pairs = zip(before, lm.trainable_weights, strict=True)
        changes = min(difference(x, y.value) for x, y in pairs)
        results.append(
            {
                "case": [mesh, sequence, options, is_lora],
                "losses": difference(ones[is_lora][0], losses),
                "weights": difference(ones[is_lora][1], weights),
                "changes": changes,
            }
        )
    return results


def moves(program):
    """What a compiled program moves, as pairs of kind and shape."""
    return sorted({(x.kind, y.shape) for x in collectives(program.as_text()) for y in x.arrays})


def states():
    """Differences of states and scores from one device's, and what bad input raises."""
    ids = np.random.RandomState(0).randint(4, 400, (2, LENGTH)).astype("int32")
    distribute()
    one = made()
    values = [np.asarray(weight.value) for weight in one.weights]

    def results(lm):
        state = lm.prefill(ids)
        later = lm.prefill(ids[:, ::-1].copy(), state=state)
        # Eight devices do not divide 43 tokens: each computes them all.
        return state.consumed, later.consumed, lm.score(ids), lm.score(ids[:, :43], state=state)

    expected = results(one)
    distribute((1, 1, 8))
    lm = made(values)
    names = "state", "state that went on", "scores", "scores of 43 tokens"
    pairs = zip(names, expected, results(lm), strict=True)
    found = {name: difference(x, y) for name, x, y in pairs}
    x = {"token_ids": ids[:, :43], "padding_mask": np.ones_like(ids[:, :43])}
    weight = np.ones(ids[:, :43].shape, "float32")
    found["fit"] = raised(lm.fit, x, ids[:, :43], sample_weight=weight, batch_size=2, verbose=0)
    get = keras_rgemma.RGemmaBackbone.get_layout_map
    mesh = keras.distribution.DeviceMesh((1, 1, 8), AXES)
    found["no axis"] = raised(get, mesh, sequence_parallel_dim_name="time")
    found["axis of rows"] = raised(get, mesh, sequence_parallel_dim_name="batch")
    return found


LONG = {**SIZES, "vocabulary_size": 64, "sliding_window_size": 64, "hidden_dim": 8}
TOKENS = 65_536


def long():
    """Losses, gradients and the memory of a row of 65,536 tokens on one device and on eight."""
    random = np.random.RandomState(0)
    ids, labels = random.randint(4, 64, (2, 1, TOKENS)).astype("int32")
    mask = np.ones_like(ids)
    mask[:, 30_000:] = 2
    found, values = [], None
    for mesh in (None, (1, 1, 8)):
        distribute(mesh)
        backbone = tiny.backbone(**LONG)
        if values is None:
            tiny.randomize(backbone)
            values = [np.asarray(weight.value) for weight in backbone.weights]
        with backbone.distribution_scope():
            for weight, value in zip(backbone.weights, values, strict=True):
                weight.assign(value)

            def outputs(weights, backbone=backbone):
                pairs = list(zip(backbone.weights, weights, strict=True))
                with keras.StatelessScope(state_mapping=pairs):
                    inputs = {"token_ids": ids, "padding_mask": mask}
                    hidden = backbone(inputs, training=True)
                    table = backbone.token_embedding.table()
                    losses, _ = cross_entropy(hidden, table, labels, soft_cap=30.0, chunk_size=8192)
                return losses.mean(), (losses, hidden)

            run = jax.jit(jax.value_and_grad(outputs, has_aux=True))
            weights = [weight.value for weight in backbone.weights]
            compiled = run.lower(weights).compile()
            (_, arrays), gradients = compiled(weights)
            temporaries = compiled.memory_analysis().temp_size_in_bytes
            found.append((arrays, gradients, temporaries))
    (ones, one_gradients, one_bytes), (arrays, gradients, nbytes) = found
    return {
        "losses": difference(ones[0], arrays[0]),
        "hidden": difference(ones[1], arrays[1]),
        "gradients": difference(one_gradients, gradients),
        "largest": max(float(np.abs(x).max()) for x in map(np.asarray, one_gradients)),
        "share": nbytes / one_bytes,
        "moves": moves(compiled),
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
