"""The fingerprint of a model: its definition, and that no change of its weights is missed."""

import dataclasses
import gc
import hashlib
import json
import logging
import weakref

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

import keras_rgemma
import tiny
from keras_rgemma.backend import backend_module
from keras_rgemma.state import checksum
from keras_rgemma.state.fingerprint import Fingerprint


@pytest.fixture
def lm():
    return tiny.randomize(tiny.causal_lm())


def definition(backbone):
    """The hash of at most four numbers along each axis of each weight, in bfloat16."""
    digest = hashlib.sha256()
    for weight in backbone.weights:
        steps = tuple(slice(None, None, -(-size // 4)) for size in weight.shape)
        digest.update(weight.path.encode())
        digest.update(tiny.numpy(weight)[steps].astype(ml_dtypes.bfloat16).tobytes())
    return digest.hexdigest()


def definition_of_checksums(backbone):
    """The hash of the checksums of all weights, in Python's integers, without an array."""
    digest = hashlib.sha256()
    for weight in backbone.weights:
        rows, columns = checksum.rows_and_columns(weight.shape)
        of_columns = checksum.column_factors(columns).tolist()
        of_rows = checksum.row_factors(rows).tolist()
        sums = [0, 0]
        for i, row in enumerate(bits(weight).reshape(rows, columns).tolist()):
            product = sum(u * b for u, b in zip(of_columns, row, strict=True))
            sums = [(s + v * product) % 2**32 for s, v in zip(sums, of_rows[i], strict=True)]
        digest.update(weight.path.encode())
        digest.update(np.array(sums, "<u4").tobytes())
    return digest.hexdigest()


def bits(weight):
    array = tiny.numpy(weight)
    if keras.backend.is_float_dtype(weight.dtype):
        return array.astype(ml_dtypes.bfloat16).view("uint16")
    return array.astype("int64") % 2**16


# Whatever the size of a weight, the device computes the same as NumPy.
@pytest.fixture(params=["on the device", "in NumPy"], autouse=True)
def where(request, monkeypatch):
    if keras.config.backend() != "torch":
        module = backend_module("keras_rgemma.state")
        monkeypatch.setattr(module, "SMALL", 0 if request.param == "on the device" else 1 << 30)
    elif request.param == "in NumPy":
        pytest.skip("PyTorch copies no weight as a whole")


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_it_is_its_definition(lm, mode):
    if mode:
        lm.quantize(mode)
    for _ in range(2):
        assert lm.fingerprint().weights == definition(lm.backbone)
        assert lm.fingerprint().checksums == definition_of_checksums(lm.backbone)
    assert json.loads(lm.fingerprint().architecture)["hidden_dim"] == tiny.SIZES["hidden_dim"]


def test_half_precision_has_its_own_numbers():
    for dtype in ("bfloat16", "float16"):
        lm = tiny.randomize(tiny.causal_lm(dtype=dtype))
        assert lm.fingerprint().weights == definition(lm.backbone)
        assert lm.fingerprint().checksums == definition_of_checksums(lm.backbone)


def test_every_change_of_the_weights_changes_it(lm):
    lm.compile(optimizer=keras.optimizers.SGD(0.1))

    def train():
        lm.fit(["A river is a large stream of water."], epochs=1, verbose=0)

    def assign():
        for weight in lm.backbone.weights[:1]:
            weight.assign(tiny.numpy(weight) + 1.0)

    def change_in_place():
        value = lm.backbone.token_embedding.embeddings.value
        if keras.config.backend() == "torch":
            value.data.mul_(2.0)
        elif keras.config.backend() == "tensorflow":
            value.assign(2.0 * value)
        else:
            lm.backbone.token_embedding.embeddings.assign(2.0 * value)

    def enable_lora():
        lm.backbone.enable_lora(2)
        lm.compile(optimizer=keras.optimizers.SGD(0.1))

    seen = [lm.fingerprint()]
    for change in (train, assign, change_in_place, train, enable_lora, train):
        change()
        seen.append(lm.fingerprint())
        assert seen[-1].weights == definition(lm.backbone)
        assert seen[-1].checksums == definition_of_checksums(lm.backbone)
    assert len(set(seen)) == len({x.checksums for x in seen}) == len(seen)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="others keep no weights")
def test_it_keeps_no_old_weights_in_memory(lm):
    embeddings = lm.backbone.token_embedding.embeddings
    lm.fingerprint()
    old = weakref.ref(embeddings.value)
    embeddings.assign(np.ones(embeddings.shape))
    gc.collect()
    assert old() is None


@pytest.mark.skipif(keras.config.backend() != "jax", reason="others read anew, in one copy")
def test_arrays_that_are_known_are_not_read_again(lm, monkeypatch):
    import jax

    read = []

    def listed(arrays, device_get=jax.device_get):
        read.append(len(arrays))
        return device_get(arrays)

    monkeypatch.setattr(jax, "device_get", listed)
    lm.fingerprint()
    lm.fingerprint()
    embeddings = lm.backbone.token_embedding.embeddings
    embeddings.assign(np.ones(embeddings.shape))
    lm.fingerprint()
    assert read == [len(lm.backbone.weights), 0, 1]


# === Every number counts ===


def few_rows(lm):
    """Changes some rows of the embedding that no sample reads."""
    embeddings = lm.backbone.token_embedding.embeddings
    value = tiny.numpy(embeddings)
    value[[7, 8, 301]] *= 1.5
    embeddings.assign(value)


def one_number(lm):
    (bias,) = (w for w in lm.weights if w.path == "block_0/mlp_block/ffw_up/bias")
    value = tiny.numpy(bias)
    value[5] *= -1
    bias.assign(value)


def two_rows_in_the_other_order(lm):
    embeddings = lm.backbone.token_embedding.embeddings
    value = tiny.numpy(embeddings)
    value[[7, 8]] = value[[8, 7]]
    embeddings.assign(value)


# Of the preset that the package ships.
PRESET = "35b8225c4ac8ab2813b6e77e6c442a3ffae37e396706f51ceecfaca5d82375b5"
CHANGES = [few_rows, one_number, two_rows_in_the_other_order]


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_of_a_model_with_a_few_other_numbers_is_refused(lm, change):
    state = lm.prefill("A river is")
    change(lm)
    with pytest.raises(ValueError, match="belongs to another model: the same sizes, but other"):
        lm.generate(" a", state=state, max_new_tokens=1)


@pytest.mark.parametrize("change", CHANGES)
def test_an_adapter_of_a_base_with_a_few_other_numbers_is_refused(lm, change, tmp_path):
    lm.backbone.enable_lora(2)
    lm.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    lm.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    change(lm)
    with pytest.raises(ValueError, match="of another model: the same sizes, but other"):
        lm.backbone.load_lora_weights(tmp_path / "a.lora.h5")


def test_the_same_weights_in_bfloat16_and_float32_have_the_same(lm):
    other = tiny.causal_lm(dtype="bfloat16")
    for weight, like in zip(other.weights, lm.weights, strict=True):
        weight.assign(tiny.numpy(like))
    assert other.fingerprint() == lm.fingerprint()


def test_the_tiniest_numbers_count(lm):
    # Some devices take them for zero where they compute with floating-point numbers.
    before = lm.fingerprint()
    embeddings = lm.backbone.token_embedding.embeddings
    value = tiny.numpy(embeddings)
    value[7] = 0.0
    embeddings.assign(value)
    zero = lm.fingerprint()
    value[7] = 1e-39
    embeddings.assign(value)
    assert len({x.checksums for x in (before, zero, lm.fingerprint())}) == 3


def test_the_preset_has_the_same_on_every_backend():
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    assert lm.fingerprint().checksums == PRESET


# === Files of versions without checksums, or without a field of the config ===


def older(fingerprint, **fields):
    architecture = json.loads(fingerprint.architecture)
    kept = {name: value for name, value in architecture.items() if name not in fields}
    return Fingerprint(json.dumps(kept), fingerprint.weights)


def test_a_fingerprint_without_checksums_is_compared_as_before(lm):
    new = lm.fingerprint()
    old = older(new)
    few_rows(lm)
    assert old.difference(new) == new.difference(old) == old.difference(lm.fingerprint()) == ""
    lm.backbone.token_embedding.embeddings.assign(np.ones((400, 16)))
    assert "other weights" in old.difference(lm.fingerprint())


@pytest.mark.parametrize("activation, fits", [("gelu_tanh", True), ("silu", False)])
def test_a_field_that_a_file_lacks_counts_as_its_default(activation, fits):
    fingerprint = tiny.causal_lm(activation=activation).fingerprint()
    old = older(fingerprint, activation=None)
    assert (old.difference(fingerprint) == "") == fits
    assert (fingerprint.difference(old) == "") == fits


def test_a_field_that_this_version_does_not_know_is_a_difference(lm):
    fingerprint = lm.fingerprint()
    architecture = {**json.loads(fingerprint.architecture), "layer_count": 2}
    newer = fingerprint._replace(architecture=json.dumps(architecture))
    assert "`layer_count`" in newer.difference(fingerprint)


def test_files_say_the_same_to_the_version_before(lm, tmp_path):
    lm.backbone.enable_lora(2)
    lm.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    with h5py.File(tmp_path / "a.lora.h5") as file:
        quantization, *fingerprints = json.loads(file.attrs["base"])
    assert (quantization, [len(x) for x in fingerprints]) == ("", [2, 2])


def test_states_of_files_of_both_kinds_are_joined(lm, tmp_path):
    state = lm.prefill("A river is")
    old = dataclasses.replace(state, fingerprint=older(state.fingerprint))
    old.save(tmp_path / "old.rgstate")
    old = keras_rgemma.RGemmaState.load(tmp_path / "old.rgstate")
    for several in ([state, old], [old, state], [old, old]):
        joined = keras_rgemma.RGemmaState.concatenate(several)
        texts = lm.generate([" a", " a"], state=joined, max_new_tokens=3, strip_prompt=True)
        assert len(set(texts)) == 1


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="others do not trace anew")
def test_many_shapes_are_no_reason_to_warn(lm, monkeypatch):
    import tensorflow as tf

    from keras_rgemma.state import tensorflow

    monkeypatch.setattr(tensorflow, "SMALL", 0)
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        lm.fingerprint()
    finally:
        tf.get_logger().removeHandler(handler)
    assert len({weight.shape for weight in lm.weights}) > 5 and not said
