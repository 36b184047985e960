"""LoRA: which layers it reaches, what it computes, and what files, merging and swapping keep."""

import hashlib
import json

import h5py
import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma.lora import backbone as lora
from parity.backend_gradients import weight_gradients

LINEAR = tiny.LINEAR
FFW_UP = {f"block_{i}/mlp_block/ffw_up" for i in (0, 1)}
A_GATE = "block_0/recurrent_block/rg_lru/a_gate"


def model(seed=2, **overrides):
    """The same one for the same seed."""
    keras.utils.set_random_seed(seed)
    return tiny.randomize(tiny.causal_lm(None, **overrides), seed)


def logits(lm):
    return tiny.numpy(lm.score(**tiny.arrays())).astype("float64")


def learn(lm, seed=0, scale=0.1):
    """Gives A and B of each layer some values."""
    random = np.random.RandomState(seed)
    for layer in lora.lora_layers_by_path(lm.backbone).values():
        for weight in (layer.lora_kernel_a, layer.lora_kernel_b):
            weight.assign(random.normal(0, scale, weight.shape))
    return lm


def fit(lm, steps, learning_rate=1e-2):
    lm.compile(keras.optimizers.Adam(learning_rate), weighted_metrics=[])
    ids = tiny.arrays()["token_ids"]
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return [float(lm.train_on_batch(x, np.roll(ids, -1, axis=1))) for _ in range(steps)]


def relative_error(found, expected):
    return np.sqrt(((found - expected) ** 2).mean()) / expected.std()


def on(lm):
    return set(lora.lora_layers_by_path(lm.backbone))


# === Targets ===


@pytest.mark.parametrize(
    "targets, expected",
    [
        (None, LINEAR),
        ("ffw_up", FFW_UP),
        (
            ["query", "a_gate"],
            {"block_1/attention_block/query", "block_0/recurrent_block/rg_lru/a_gate"},
        ),
        ("block_1/.*_block/.*", {path for path in LINEAR if path.startswith("block_1/")}),
        (
            ["block_0/mlp_block/ffw_up", ".*_up"],
            {"block_0/mlp_block/ffw_up", "block_1/mlp_block/ffw_up"},
        ),
        ("linear_.", {f"block_0/recurrent_block/linear_{x}" for x in "xy"}),
    ],
)
def test_names_paths_and_expressions_choose_layers(targets, expected):
    lm = model()
    lm.backbone.enable_lora(2, targets)
    assert on(lm) == expected
    trained = {f"{path}/lora_kernel_{x}" for path in expected for x in "ab"}
    assert {weight.path for weight in lm.trainable_weights} == trained


@backend_independent
@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((0,), "`rank` must be a positive integer. Received: 0"),
        ((2.5,), "`rank` must be a positive integer. Received: 2.5"),
        ((2, "dense"), "'dense' matches no linear layer"),
        ((2, ["query", "token_embedding"]), "'token_embedding' matches no linear layer"),
        ((2, ["("]), r"regular expressions. Received: '\('"),
        ((2, [3]), "regular expressions. Received: 3"),
        ((2, []), "`target_layer_names` is empty"),
    ],
)
def test_what_cannot_be_enabled_changes_nothing(arguments, reason):
    lm = model()
    with pytest.raises(ValueError, match=reason):
        lm.backbone.enable_lora(*arguments)
    assert not on(lm) and len(lm.trainable_weights) == len(lm.weights)


@backend_independent
@pytest.mark.parametrize("alpha", [0, -1, float("inf"), "8"])
def test_alpha_is_a_positive_number(alpha):
    with pytest.raises(ValueError, match="`alpha` must be a positive number"):
        tiny.backbone().enable_lora(2, alpha=alpha)


@backend_independent
def test_lora_is_enabled_once():
    lm = model()
    for call in (lm.backbone.merge_lora, lm.backbone.disable_lora):
        with pytest.raises(ValueError, match="LoRA is not enabled"):
            call()
    lm.backbone.enable_lora(2)
    with pytest.raises(ValueError, match=r"enabled already. Call `merge_lora\(\)`"):
        lm.backbone.enable_lora(2)


# === What it computes ===


def test_it_changes_nothing_at_first_and_is_the_sum_of_both_products_then():
    lm, merged = model(), model()
    before = logits(lm)
    lm.backbone.enable_lora(3, alpha=6)
    np.testing.assert_array_equal(logits(lm), before)
    learn(lm)
    for path, layer in lora.linear_layers(merged.backbone).items():
        adapted = lora.lora_layers_by_path(lm.backbone)[path]
        a, b = (tiny.numpy(x) for x in (adapted.lora_kernel_a, adapted.lora_kernel_b))
        layer._kernel.assign(tiny.numpy(layer._kernel) + 2 * (a @ b))
    assert np.abs(logits(lm) - before).max() > 0.1
    # x W + (x A) B and x (W + A B): float32 sums in another order.
    np.testing.assert_allclose(logits(lm), logits(merged), atol=1e-5)


def test_gradients_are_those_of_the_merged_weights():
    lm, merged = model(), model()
    lm.backbone.enable_lora(3, alpha=6)
    learn(lm)
    layers = lora.lora_layers_by_path(lm.backbone)
    factors = {
        path: [tiny.numpy(x).astype("float64") for x in (layer.lora_kernel_a, layer.lora_kernel_b)]
        for path, layer in layers.items()
    }
    for path, layer in lora.linear_layers(merged.backbone).items():
        a, b = factors[path]
        layer._kernel.assign(tiny.numpy(layer._kernel) + 2 * (a @ b))
    inputs = tiny.arrays()
    toward = np.random.RandomState(0).normal(size=(*inputs["token_ids"].shape, 400))

    def loss(logits):
        return keras.ops.sum(logits * keras.ops.convert_to_tensor(toward, "float32"))

    found = weight_gradients(lm, loss, **inputs)
    kernels = weight_gradients(merged, loss, **inputs)
    assert set(found) == {f"{path}/lora_kernel_{x}" for path in LINEAR for x in "ab"}
    for path, (a, b) in factors.items():
        d = kernels[f"{path}/kernel"].astype("float64")
        expected_a, expected_b = 2 * d @ b.T, 2 * np.swapaxes(a, -1, -2) @ d
        if expected_b.ndim == 3:  # the blocks of a gate share B
            expected_b = expected_b.sum(axis=0)
        for name, expected in (("a", expected_a), ("b", expected_b)):
            value = found[f"{path}/lora_kernel_{name}"]
            # Float32 sums in another order.
            np.testing.assert_allclose(value, expected, 1e-4, 1e-4 * np.abs(expected).max())


def test_only_the_adapters_learn():
    lm = model()
    lm.backbone.enable_lora(4)
    before = {weight.path: tiny.numpy(weight) for weight in lm.weights}
    received = fit(lm, 6)
    assert received[-1] < received[0] - 0.3
    for weight in lm.weights:
        moved = np.abs(tiny.numpy(weight) - before[weight.path]).max() > 0
        assert moved == ("lora_kernel" in weight.path), weight.path


def test_a_model_that_was_trained_or_evaluated_before_can_learn():
    lm = tiny.causal_lm(sequence_length=8)
    texts = ["the sea", "a river"]
    lm.evaluate(texts, verbose=0)
    lm.backbone.enable_lora(2)
    lm.compile()
    lm.fit(texts, verbose=0)
    lm.backbone.merge_lora()
    lm.compile()
    lm.fit(texts, verbose=0)
    assert len(lm.optimizer._trainable_variables) == len(lm.trainable_weights) == len(lm.weights)


@pytest.mark.parametrize("steps", [None, 2])
def test_an_optimizer_of_other_weights_that_made_a_step_is_refused(steps):
    lm = tiny.causal_lm(sequence_length=8)
    lm.compile(keras.optimizers.Adam(1e-3, gradient_accumulation_steps=steps))
    lm.fit(["the sea"], verbose=0)
    lm.backbone.enable_lora(2)
    with pytest.raises(ValueError, match="Call `compile` before `fit`"):
        lm.fit(["the sea"], verbose=0)


@pytest.mark.parametrize("mode", [None, "int8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_half_precision_stays_what_it_is(dtype, mode):
    lm = model(dtype=dtype)
    targets = ["ffw_up", "a_gate", "query"]
    if mode:
        lm.quantize(mode, filters=lambda layer: layer.name in targets)
    lm.backbone.enable_lora(4, targets)
    hidden = lm.backbone.predict_on_batch(tiny.arrays())
    assert keras.backend.standardize_dtype(hidden.dtype) == "bfloat16"
    learn(lm)
    for layer in lora.lora_layers_by_path(lm.backbone).values():
        assert keras.backend.standardize_dtype(layer.lora_kernel_a.dtype) == "float32"
        shape = (2, 1, 3, layer.weight_shape[-2])[-len(layer.weight_shape) - 1 :]
        out = layer(keras.ops.ones(shape, "bfloat16"))
        assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    received = fit(lm, 5)
    assert received[-1] < received[0] - 0.05


def test_generate_sees_what_was_learned():
    lm = model()
    prompt = {"token_ids": np.array([[2, 300, 301]], "int32")}
    options = {"max_new_tokens": 4, "stop_token_ids": None}
    before = lm.generate(prompt, **options)["token_ids"]
    lm.backbone.enable_lora(2)
    np.testing.assert_array_equal(lm.generate(prompt, **options)["token_ids"], before)
    learn(lm, scale=1.0)
    written = lm.generate(prompt, **options)["token_ids"]
    expected = tiny.numpy(lm.score(written))[:, 2:6].argmax(axis=-1)
    np.testing.assert_array_equal(written[:, 3:], expected)
    assert (written != before).any()
    lm.backbone.disable_lora()
    np.testing.assert_array_equal(lm.generate(prompt, **options)["token_ids"], before)


def test_programs_made_before_know_of_lora():
    """Keras on JAX and TensorFlow keeps what it compiled, with the weights that were there."""
    lm = model()
    lm.compile(keras.optimizers.SGD(1.0))
    x = tiny.arrays()
    y = np.roll(x["token_ids"], -1, axis=1)

    def loss():
        logits = tiny.numpy(lm.score(**x)).astype("float64")
        shifted = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected = -np.take_along_axis(shifted, y[..., None], axis=-1).mean()
        found = lm.evaluate(x, y, verbose=0)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        # Programs of another length add up in another order: by 3e-6 of the largest on TensorFlow.
        bound = 1e-5 * np.abs(logits).max()
        np.testing.assert_allclose(lm.predict(x, verbose=0), logits, rtol=0, atol=bound)
        return found

    losses = [loss()]
    lm.backbone.enable_lora(2)
    frozen = [tiny.numpy(w) for w in lm.weights if not w.trainable]
    learn(lm, scale=0.5)
    losses.append(loss())
    lm.fit(x, y, verbose=0, shuffle=False)  # without `compile`: nothing was trained before
    now = [tiny.numpy(w) for w in lm.weights if not w.trainable]
    assert all((a == b).all() for a, b in zip(frozen, now, strict=True))
    losses.append(loss())
    lm.backbone.merge_lora()
    np.testing.assert_allclose(loss(), losses[-1], rtol=1e-5)
    assert np.abs(np.diff(losses)).min() > 1e-3
    for _ in range(2):  # a second try finds the same
        with pytest.raises(ValueError, match="Call `compile` before `fit`"):
            lm.fit(x, y, verbose=0)


def test_adapters_of_other_alphas_are_swapped(tmp_path):
    lm = model()
    expected = []
    for alpha in (2, 20):
        lm.backbone.enable_lora(2, "query", alpha=alpha)
        expected.append(logits(learn(lm, scale=0.3)))
        lm.backbone.save_lora_weights(tmp_path / f"{alpha}.lora.h5")
        lm.backbone.disable_lora()
    assert np.abs(expected[1] - expected[0]).max() > 0.01
    for alpha, value in ((2, expected[0]), (20, expected[1]), (2, expected[0])):
        lm.backbone.load_lora_weights(tmp_path / f"{alpha}.lora.h5")
        np.testing.assert_allclose(logits(lm), value, atol=1e-6)


# === Merged, taken away, saved, swapped ===


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_merged_weights_compute_the_same(dtype):
    lm = model(dtype=dtype)
    lm.backbone.enable_lora(3, ["ffw_up", "a_gate", "query"], alpha=5)
    kernels = {
        path: tiny.numpy(x._kernel)
        for path, x in lora.lora_layers_by_path(learn(lm).backbone).items()
    }
    expected, found = {}, logits(lm)
    for path, layer in lora.lora_layers_by_path(lm.backbone).items():
        product = tiny.numpy(layer.lora_kernel_a) @ tiny.numpy(layer.lora_kernel_b)
        expected[path] = kernels[path] + np.float32(5 / 3) * product
    lm.backbone.merge_lora()
    assert not on(lm) and not [w.path for w in lm.weights if "lora" in w.path]
    assert len(lm.trainable_weights) == len(lm.weights)
    for path, value in expected.items():
        merged = lora.linear_layers(lm.backbone)[path]._kernel
        np.testing.assert_allclose(tiny.numpy(merged), value, rtol=1e-6, atol=1e-7)
    if dtype == "float32":
        np.testing.assert_allclose(logits(lm), found, atol=1e-5)


def test_what_is_taken_away_leaves_no_trace():
    lm = model()
    before, weights = logits(lm), [w.path for w in lm.weights]
    lm.backbone.enable_lora(3)
    learn(lm).backbone.disable_lora()
    assert [w.path for w in lm.trainable_weights] == weights == [w.path for w in lm.weights]
    np.testing.assert_array_equal(logits(lm), before)
    lm.backbone.enable_lora(2, "query")  # and anew
    assert fit(lm, 2)[1] < 10


@pytest.fixture
def saved(tmp_path):
    """A model with LoRA, and its adapter file."""
    lm = model()
    lm.backbone.enable_lora(3, ["ffw_.*", "a_gate", "query"], alpha=5)
    path = tmp_path / "a.lora.h5"
    learn(lm).backbone.save_lora_weights(path)
    return lm, path


def test_an_adapter_goes_into_a_fresh_model(saved):
    lm, path = saved
    fresh = model()
    fresh.backbone.load_lora_weights(str(path))
    assert on(fresh) == on(lm)
    np.testing.assert_array_equal(logits(fresh), logits(lm))
    assert [w.path for w in fresh.trainable_weights] == [w.path for w in lm.trainable_weights]
    layer = lora.lora_layers_by_path(fresh.backbone)["block_1/attention_block/query"]
    assert (layer.lora_rank, layer.lora_alpha) == (3, 5)


def test_adapters_are_swapped(saved, tmp_path):
    lm, path = saved
    first = logits(lm)
    learn(lm, seed=1)
    second = logits(lm)
    lm.backbone.save_lora_weights(tmp_path / "b.lora.h5")
    for file, expected in ((path, first), (tmp_path / "b.lora.h5", second), (path, first)):
        lm.backbone.load_lora_weights(file)
        np.testing.assert_array_equal(logits(lm), expected)
    lm.backbone.disable_lora()
    lm.backbone.enable_lora(2)
    with pytest.raises(ValueError, match=r"rank 2 on 'block_0.*a.lora.h5' of rank"):
        lm.backbone.load_lora_weights(path)
    assert on(lm) == LINEAR
    lm.backbone.disable_lora()
    lm.backbone.load_lora_weights(path)
    np.testing.assert_array_equal(logits(lm), first)


def test_an_adapter_says_what_it_is(saved):
    _, path = saved
    with h5py.File(path) as file:
        assert file.attrs["format"] == "keras-rgemma LoRA" and file.attrs["version"] == 1
        group = file[f"layers/{A_GATE}"]
        assert (group.attrs["rank"], group.attrs["alpha"]) == (3, 5)
        assert group["lora_kernel_a"].shape == (2, 12, 3)  # heads, their width, the rank
        assert len(json.loads(file.attrs["targets"])) == 8
    assert path.stat().st_size < 60_000


def test_the_adapter_of_another_model_is_refused(saved):
    _, path = saved
    before = model(seed=3)
    merged = model()
    merged.backbone.load_lora_weights(path)
    merged.backbone.merge_lora()
    cases = {
        "the same sizes, but other weights": before,
        "same sizes, but other weights": merged,
        "`sliding_window_size` 5 and 4": model(sliding_window_size=4),
    }
    for reason, lm in cases.items():
        with pytest.raises(ValueError, match=f"a.lora.h5' is the adapter of another.*{reason}"):
            lm.backbone.load_lora_weights(path)
        assert not on(lm)


@backend_independent
def test_a_half_precision_model_is_no_other_one(saved):
    lm, path = saved
    half = tiny.causal_lm(None, dtype="bfloat16")
    plain = model()
    half.set_weights(plain.get_weights())
    half.backbone.load_lora_weights(path)
    assert on(half) == on(lm)


@backend_independent
def test_what_is_quantized_from_half_precision_is_no_other_one(tmp_path):
    """Though it was rounded to other integers."""
    models = [tiny.causal_lm(None, dtype=dtype) for dtype in ("bfloat16", "float32")]
    for lm in models:
        lm.set_weights(model().get_weights())
        lm.quantize("int8", filters=lambda layer: layer.name in ("ffw_up", "query"))
    half, single = models
    half.backbone.enable_lora(2)
    half.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    single.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    assert on(single) == on(half)


@backend_independent
def test_weights_that_are_refused_change_no_adapter(tmp_path):
    lm, other = model(), model()
    lm.backbone.enable_lora(8, "query")
    lm.save_weights(tmp_path / "a.weights.h5")
    other.backbone.enable_lora(4, alpha=2)
    expected = logits(learn(other))
    with pytest.raises(ValueError, match=r"rank 8 for 'block_1/attention_block/query'.* rank 4"):
        other.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(logits(other), expected)


@backend_independent
def test_files_that_cannot_be_used(saved, tmp_path):
    lm, path = saved
    backbone = model().backbone
    with pytest.raises(FileNotFoundError):
        backbone.load_lora_weights(tmp_path / "none.lora.h5")
    with pytest.raises(ValueError, match=r"ends in '.lora.h5'. Received: 'a.h5'"):
        lm.backbone.save_lora_weights("a.h5")
    with pytest.raises(ValueError, match="LoRA is not enabled"):
        backbone.save_lora_weights(tmp_path / "b.lora.h5")
    content = path.read_bytes()
    broken = tmp_path / "broken.lora.h5"
    for bad in (content[: len(content) // 2], b"no HDF5", b""):
        broken.write_bytes(bad)
        with pytest.raises(ValueError, match=r"broken.lora.h5' cannot be used"):
            backbone.load_lora_weights(broken)
    lm.save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(ValueError, match="no adapter of keras-rgemma"):
        backbone.load_lora_weights(tmp_path / "w.weights.h5")
    for change, reason in (
        (lambda file: file.attrs.modify("version", 2), "version 2"),
        (lambda file: file.attrs.__delitem__("base"), "cannot be used"),
        (lambda file: file["layers/block_1/attention_block"].pop("query"), "cannot be used"),
        (lambda file: file.attrs.modify("targets", '["block_7/query"]'), "cannot be used"),
    ):
        broken.write_bytes(content)
        with h5py.File(broken, "a") as file:
            change(file)
        with pytest.raises(ValueError, match=reason):
            backbone.load_lora_weights(broken)
    assert not lora.lora_layers_by_path(backbone)


def hash_of(file):
    """The hash of an adapter file, as its format defines it."""
    digest = hashlib.sha256()
    for name in json.loads(file.attrs["targets"]):
        group = file[f"layers/{name}"]
        a, b = (group[f"lora_kernel_{x}"][()] for x in "ab")
        header = [name, float(group.attrs["alpha"]), a.shape, b.shape]
        digest.update(json.dumps(header).encode() + a.tobytes() + b.tobytes())
    return digest.hexdigest()


@backend_independent
def test_numbers_of_other_shapes_or_none(saved, tmp_path):
    _, path = saved
    backbone = model().backbone
    for value, reason in (
        (np.zeros((16, 3), "float32"), "it is damaged"),
        (np.zeros((15, 3), "float32"), r"shapes \(15, 3\) and \(3, 16\)"),
        (np.full((16, 3), np.nan, "float32"), "not finite"),
    ):
        with h5py.File(path, "a") as file:
            group = file["layers/block_1/attention_block/query"]
            del group["lora_kernel_a"]
            group["lora_kernel_a"] = value
            if value.shape == (15, 3):  # written like this
                file.attrs["hash"] = hash_of(file)
        with pytest.raises(ValueError, match=reason):
            backbone.load_lora_weights(path)
        assert not lora.lora_layers_by_path(backbone)


# === Whole models ===


def test_weights_saved_with_lora_come_back_as_they_were(tmp_path):
    path = str(tmp_path / "all.weights.h5")
    lm = model()
    lm.backbone.enable_lora(3, alpha=5)
    learn(lm).save_weights(path)
    expected = logits(lm)
    again = model(seed=4)
    again.backbone.enable_lora(3)
    again.load_weights(path)
    np.testing.assert_array_equal(logits(again), expected)
    for weight, other in zip(again.weights, lm.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(other))
    plain = model(seed=4)
    plain.load_weights(path)
    assert not on(plain)
    np.testing.assert_allclose(logits(plain), expected, atol=1e-5)
    other = model()
    other.backbone.enable_lora(2)
    with pytest.raises(ValueError, match=r"LoRA of rank 3 for 'block_.*the model of rank 2"):
        other.load_weights(path)


def test_weights_of_a_plain_model_leave_lora_able_to_learn(tmp_path):
    path = str(tmp_path / "plain.weights.h5")
    plain = model(seed=4)
    plain.save_weights(path)
    lm = model()
    lm.backbone.enable_lora(3)
    learn(lm).load_weights(path)
    np.testing.assert_array_equal(logits(lm), logits(plain))
    received = fit(lm, 4)
    assert received[-1] < received[0] - 0.1


@backend_independent
def test_lora_on_other_layers_is_not_dropped(tmp_path):
    lm = model()
    lm.backbone.enable_lora(np.int64(2), "query", alpha=np.float32(3))
    lm.backbone.token_embedding.enable_lora(2)
    for call in (
        lm.backbone.merge_lora,
        lambda: lm.backbone.save_lora_weights(tmp_path / "a.lora.h5"),
        lambda: lm.export_to_peft(tmp_path / "peft"),
    ):
        with pytest.raises(ValueError, match="enabled on 'token_embedding', which is no linear"):
            call()


@backend_independent
def test_frozen_layers_stay_frozen(tmp_path):
    lm, plain = model(), model()
    lm.backbone.enable_lora(2)
    learn(lm).save_weights(tmp_path / "a.weights.h5")
    plain.backbone.trainable = False
    plain.load_weights(tmp_path / "a.weights.h5")
    assert not plain.trainable_weights


# === QLoRA ===


def test_a_model_that_is_quantized_as_a_whole_learns_as_one_whose_head_is_not(tmp_path):
    """Its gradients are those of the head that was rounded, and not what rounding lets through."""
    names = ["linear_out", "ffw_up"]
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm(num_layers=1))
    head = lm.backbone.token_embedding
    before = tiny.numpy(head.embeddings)
    lm.quantize("int8", filters=lambda layer: layer is head or layer.name in names)
    other = tiny.causal_lm(None, num_layers=1)
    other.quantize("int8", filters=lambda layer: layer.name in names)
    rounded = tiny.numpy(head(np.arange(400)))
    assert 0 < np.abs(rounded - before).max() < 0.02
    for weight in other.weights:
        source = next((w for w in lm.weights if w.path == weight.path), None)
        weight.assign(rounded if weight.path.endswith("embeddings") else tiny.numpy(source))
    received = []
    for found in (lm, other):
        found.backbone.enable_lora(2, names)
        received.append(fit(learn(found), 4))
    np.testing.assert_allclose(received[0], received[1], rtol=1e-3)
    assert received[0][-1] < received[0][0] - 0.02
    # What was learned is still there when the model is loaded.
    expected = logits(lm)
    lm.save_to_preset(tmp_path / "preset")
    loaded = type(lm).from_preset(str(tmp_path / "preset"))
    assert on(loaded) == on(lm)
    np.testing.assert_array_equal(logits(loaded), expected)
    # And it goes on as it began: the base stays that of the adapter.
    assert [w.path for w in loaded.trainable_weights] == [w.path for w in lm.trainable_weights]
    fit(loaded, 1)
    loaded.backbone.save_lora_weights(tmp_path / "more.lora.h5")
    lm.backbone.load_lora_weights(tmp_path / "more.lora.h5")
    np.testing.assert_array_equal(logits(lm), logits(loaded))
    lm.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="quantized embedding"):
        lm.train_on_batch(tiny.arrays(), np.ones((2, 7), "int32"))


@pytest.mark.parametrize("mode, rounding", [("int8", 0.01), ("int4", 0.1)])
def test_adapters_of_quantized_models(mode, rounding, tmp_path):
    def quantized(seed=2):
        lm = model(seed, num_layers=1)
        # A few kinds of layers; each takes its time.
        lm.quantize(mode, filters=lambda layer: layer.name in names)
        return lm

    names = ["ffw_up", "a_gate", "linear_out"]

    lm = quantized()
    lm.backbone.enable_lora(2, names)
    base = {w.path: tiny.numpy(w) for w in lm.weights if "lora" not in w.path}
    received = fit(lm, 5)
    assert received[-1] < received[0] - 0.05
    for weight in lm.weights:
        if weight.path in base:
            np.testing.assert_array_equal(tiny.numpy(weight), base[weight.path])
    path = tmp_path / "q.lora.h5"
    lm.backbone.save_lora_weights(path)
    expected = logits(lm)
    fresh = quantized()
    fresh.backbone.load_lora_weights(path)
    np.testing.assert_array_equal(logits(fresh), expected)
    # It fits the base in full precision, too, and no other one.
    full = model(num_layers=1)
    full.backbone.load_lora_weights(path)
    assert relative_error(logits(full), expected) < rounding
    for other in (quantized(seed=3), model(3, num_layers=1)):
        with pytest.raises(ValueError, match="other weights"):
            other.backbone.load_lora_weights(path)
    lm.save_weights(tmp_path / "q.weights.h5")
    again = quantized()
    again.backbone.enable_lora(2, names)
    again.load_weights(tmp_path / "q.weights.h5")
    np.testing.assert_array_equal(logits(again), expected)
    lm.backbone.merge_lora()
    assert not on(lm)
    # Rounded anew to 8 or 4 bits.
    assert 0 < relative_error(logits(lm), expected) < rounding
