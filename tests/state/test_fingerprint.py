"""The fingerprint of a model: its definition, and that no change of its weights is missed."""

import gc
import hashlib
import json
import weakref

import keras
import ml_dtypes
import numpy as np
import pytest

import tiny


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


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_it_is_its_definition(lm, mode):
    if mode:
        lm.quantize(mode)
    for _ in range(2):
        assert lm.fingerprint().weights == definition(lm.backbone)
    assert json.loads(lm.fingerprint().architecture)["hidden_dim"] == tiny.SIZES["hidden_dim"]


def test_half_precision_has_its_own_numbers():
    for dtype in ("bfloat16", "float16"):
        lm = tiny.randomize(tiny.causal_lm(dtype=dtype))
        assert lm.fingerprint().weights == definition(lm.backbone)


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

    seen = [lm.fingerprint().weights]
    for change in (train, assign, change_in_place, train, enable_lora, train):
        change()
        seen.append(lm.fingerprint().weights)
        assert seen[-1] == definition(lm.backbone)
    assert len(set(seen)) == len(seen)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="others keep nothing of what they read")
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
