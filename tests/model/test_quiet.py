"""Things that are as they should be raise no warning, and the news still do."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from keras_rgemma.finetuning import AdamW

TEXTS = ["The quick brown fox.", "Call me Ishmael."]


def compiled(**kwargs):
    lm = tiny.causal_lm(num_layers=1, **kwargs)
    lm.compile(AdamW(1e-2), weighted_metrics=[])
    return lm


def trained(**kwargs):
    lm = compiled(**kwargs)
    lm.fit(TEXTS, batch_size=2, verbose=0)
    return lm


def moments(lm):
    return [tiny.numpy(x) for x in lm.optimizer.variables]


def quantize(path):
    tiny.causal_lm(num_layers=1).quantize("int8", filters=["token_embedding", "norm"])


def quantize_a_backbone(path):
    tiny.backbone(num_layers=1).quantize("int8", filters=lambda layer: "token" in layer.name)


def fit_a_dataset(path):
    compiled().fit(tf.data.Dataset.from_tensors(TEXTS), verbose=0)


def fit_with_validation(path):
    data = tf.data.Dataset.from_tensors(TEXTS)
    compiled().fit(data, validation_data=data, verbose=0)


def weights_of_a_trained_model_in_a_new_one(path):
    saved, new = trained(), compiled()
    saved.save_weights(path / "a.weights.h5")
    new.load_weights(path / "a.weights.h5")
    for one, other in zip(saved.weights, new.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))


def weights_of_a_new_model_in_a_trained_one(path):
    lm = trained()
    before = moments(lm)
    compiled().save_weights(path / "a.weights.h5")
    lm.load_weights(path / "a.weights.h5")
    for one, other in zip(before, moments(lm), strict=True):
        np.testing.assert_array_equal(one, other)


def weights_of_a_trained_model_in_a_trained_one(path):
    saved, lm = trained(), trained()
    saved.fit(TEXTS, batch_size=2, verbose=0)
    saved.save_weights(path / "a.weights.h5")
    lm.load_weights(path / "a.weights.h5")
    for one, other in zip(moments(saved), moments(lm), strict=True):
        np.testing.assert_array_equal(one, other)


def a_model_before_it_learns(path):
    lm = compiled()
    lm.save(path / "a.keras")
    found = keras.models.load_model(path / "a.keras")
    assert type(found.optimizer) is AdamW
    np.testing.assert_allclose(float(found.optimizer.learning_rate.value), 1e-2)
    found.fit(TEXTS, batch_size=2, verbose=0)
    assert len(moments(found)) > len(found.trainable_weights)


def a_model_that_has_learned(path):
    lm = trained()
    lm.save(path / "a.keras")
    found = keras.models.load_model(path / "a.keras")
    for one, other in zip(moments(lm), moments(found), strict=True):
        np.testing.assert_array_equal(one, other)


SILENT = [
    quantize,
    quantize_a_backbone,
    fit_a_dataset,
    fit_with_validation,
    weights_of_a_trained_model_in_a_new_one,
    weights_of_a_new_model_in_a_trained_one,
    weights_of_a_trained_model_in_a_trained_one,
    a_model_before_it_learns,
    a_model_that_has_learned,
]


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of Keras and the backends, about Python or each other; Python shows few of them.
        for category in (DeprecationWarning, FutureWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        yield


@pytest.mark.parametrize("action", SILENT, ids=lambda action: action.__name__)
def test_nothing_is_said(action, tmp_path, capfd):
    with no_warning():
        action(tmp_path)
    assert capfd.readouterr() == ("", "")


# === News ===


def shuffle_a_dataset(path):
    compiled().fit(tf.data.Dataset.from_tensors(TEXTS), shuffle=True, verbose=0)


def load_the_state_of_another_optimizer(path):
    saved, lm = tiny.causal_lm(num_layers=1), trained()
    saved.compile(keras.optimizers.SGD(0.1, momentum=0.5), weighted_metrics=[])
    saved.fit(TEXTS, batch_size=2, verbose=0)
    saved.save_weights(path / "a.weights.h5")
    lm.load_weights(path / "a.weights.h5")


@pytest.mark.parametrize(
    "action, message",
    [
        (shuffle_a_dataset, "`shuffle=True` was passed"),
        (load_the_state_of_another_optimizer, "Skipping variable loading for optimizer"),
    ],
)
def test_what_is_asked_for_in_vain_is_said(action, message, tmp_path):
    with pytest.warns(UserWarning, match=message):
        action(tmp_path)


def test_filters_choose_as_they_do_in_keras():
    by_name = tiny.causal_lm(num_layers=1)
    by_name.quantize("int8", filters="^token_embedding$")
    modes = {x.quantization_mode for x in by_name._flatten_layers() if "token_emb" in x.name}
    assert modes == {"int8"}
    assert by_name.backbone.transformer_layers[0].quantization_mode is None
    with pytest.raises(ValueError, match="filters"):
        tiny.causal_lm(num_layers=1).quantize("int8", filters=3)
