"""The optimizer: what it decays, and that it survives being saved."""

import keras
import numpy as np

import keras_rgemma
import tiny
from backend_independent import backend_independent
from keras_rgemma.finetuning import AdamW


def test_matrices_alone_decay():
    lm = tiny.randomize(tiny.causal_lm(None))
    # No step without decay: all labels weigh nothing.
    lm.compile(AdamW(0.1, weight_decay=0.5))
    before = {weight.path: tiny.numpy(weight) for weight in lm.trainable_weights}
    x = tiny.arrays()
    lm.train_on_batch(x, x["token_ids"], sample_weight=np.zeros((2, 7), "float32"))
    decayed = set()
    for weight in lm.trainable_weights:
        value, expected = tiny.numpy(weight), before[weight.path]
        if (value != expected).any():
            np.testing.assert_allclose(value, 0.95 * expected, rtol=1e-5, atol=1e-7)
            decayed.add(weight.path)
    assert decayed == {path for path in before if path.endswith("kernel")}


def test_it_survives_a_round_trip():
    optimizer = AdamW(
        keras.optimizers.schedules.CosineDecay(1e-3, 100), weight_decay=0.2, beta_2=0.95
    )
    config = keras.saving.serialize_keras_object(optimizer)
    revived = keras.saving.deserialize_keras_object(config)
    assert type(revived) is AdamW
    assert revived.get_config() == optimizer.get_config()
    assert (revived.weight_decay, revived.global_clipnorm, revived.beta_2) == (0.2, 1.0, 0.95)
    backbone = tiny.randomize(tiny.backbone())
    bias, kernel = (
        next(w for w in backbone.weights if w.path.endswith(name)) for name in ("bias", "kernel")
    )
    before = [tiny.numpy(bias), tiny.numpy(kernel)]
    revived.apply([keras.ops.zeros(w.shape) for w in (bias, kernel)], [bias, kernel])
    np.testing.assert_array_equal(tiny.numpy(bias), before[0])
    np.testing.assert_allclose(tiny.numpy(kernel), before[1] * (1 - 1e-3 * 0.2), rtol=1e-5)


@backend_independent
def test_other_ways_of_clipping_take_its_place():
    assert AdamW(clipnorm=1.0).global_clipnorm is None
    assert AdamW(global_clipnorm=None).global_clipnorm is None


def test_the_norm_of_all_gradients_is_clipped():
    variables, moved = tiny.backbone().trainable_weights, []
    for scale in (1.0, 1e3):
        optimizer = AdamW(1.0, weight_decay=0.0, epsilon=1.0, beta_1=0.0, beta_2=0.999)
        before = [tiny.numpy(w) for w in variables]
        optimizer.apply([scale * keras.ops.ones(w.shape) for w in variables], variables)
        steps = [tiny.numpy(w) - old for w, old in zip(variables, before, strict=True)]
        moved.append(np.sqrt(sum((step.astype("float64") ** 2).sum() for step in steps)))
    # Where epsilon is much larger than a gradient, the first step is sqrt(1 - beta_2) gradients.
    np.testing.assert_allclose(moved, np.sqrt(1e-3), rtol=1e-2)


@backend_independent
def test_it_is_there_without_an_import_of_its_own():
    assert keras_rgemma.finetuning.AdamW is AdamW
