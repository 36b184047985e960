"""Truncated backpropagation: pieces in their order are the document, whatever their length."""

import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma.finetuning import AdamW, LongTexts

B = 2
# Three documents for two rows; the window is 5 tokens.
TEXTS = ["".join(tiny.SENTENCES[:2]), tiny.SENTENCES[4], tiny.SENTENCES[6] + tiny.SENTENCES[3]]


@pytest.fixture
def lm():
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm(sequence_length=128))
    lm.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
    return lm


def total(results, rows):
    """The loss summed over all tokens."""
    return results * rows[2].size


def test_pieces_are_the_documents(lm):
    long = LongTexts(lm, B)
    x, y, weight = long.pieces(TEXTS, length=7)
    assert len(y) % B == 0 and y.shape[1] == 7
    found = {}
    for column in range(B):
        for row in range(column, len(y), B):
            mask = x["padding_mask"][row]
            assert (mask > 0).tolist() == sorted(mask > 0, reverse=True) == weight[row].tolist()
            for number in set(mask.tolist()) - {0}:
                ids = found.setdefault(number, [2])
                assert x["token_ids"][row][0] == ids[-1]
                ids += y[row][mask > 0].tolist()
    tokenizer = lm.preprocessor.tokenizer
    assert [found[i] for i in (1, 2, 3)] == [[2, *tokenizer(text), 1] for text in TEXTS]


def test_the_loss_of_pieces_is_that_of_the_whole(lm):
    x, y, weight = whole = keras.tree.map_structure(tiny.numpy, lm.preprocessor(TEXTS))
    expected = total(lm.evaluate(x, y, sample_weight=weight, verbose=0), whole)
    long = LongTexts(lm, B)
    for length in (1, 6):
        x, y, weight = rows = long.pieces(TEXTS, length)
        long.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
        found = long.evaluate(x, y, sample_weight=weight, verbose=0)
        assert total(found, rows) == pytest.approx(expected, rel=1e-5)
        # Each epoch begins anew, and so does an evaluation between two batches.
        history = long.fit(x, y, sample_weight=weight, epochs=2, verbose=0).history["loss"]
        np.testing.assert_allclose(history, [found, found], rtol=1e-5)


def test_the_model_learns_and_validation_changes_nothing(lm):
    losses, first = [], lm.get_weights()
    for validation in (False, True):
        lm.set_weights(first)
        long = LongTexts(lm, B)
        x, y, weight = rows = long.pieces(TEXTS, 16)
        long.compile(AdamW(1e-2), weighted_metrics=[])
        data = {"validation_data": rows} if validation else {}
        data["callbacks"] = keras.callbacks.TerminateOnNaN()  # one alone, as `fit` takes it
        history = long.fit(x, y, sample_weight=weight, epochs=3, verbose=0, **data).history
        losses.append(history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][2] < losses[0][0] - 0.1
    np.testing.assert_allclose(
        history["val_loss"][2], long.evaluate(x, y, sample_weight=weight, verbose=0), rtol=1e-5
    )
    assert any((a != b).any() for a, b in zip(first, lm.get_weights(), strict=True))


@backend_independent
def test_rows_that_are_no_batches(lm):
    long = LongTexts(lm, B)
    x, y, weight = rows = long.pieces(TEXTS, 7)
    odd = {name: value[:-1] for name, value in x.items()}, y[:-1], weight[:-1]
    long.compile(weighted_metrics=[])
    for call in (
        lambda: long.fit(*odd, verbose=0),
        lambda: long.fit(*rows, validation_data=odd, verbose=0),
        lambda: long.evaluate(*odd, verbose=0),
    ):
        with pytest.raises(ValueError, match=f"{len(y) - 1} rows, which are no whole batches of 2"):
            call()
    for setting in ({"batch_size": 4}, {"validation_split": 0.5}):
        with pytest.raises(ValueError, match="is no setting here"):
            long.fit(*rows, **setting, verbose=0)


@backend_independent
def test_files_hold_the_model(lm, tmp_path):
    long = LongTexts(lm, B)
    x, y, weight = long.pieces(TEXTS, 7)
    long.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
    expected = long.evaluate(x, y, sample_weight=weight, verbose=0)
    long.save(tmp_path / "long.keras")
    loaded = keras.saving.load_model(tmp_path / "long.keras")
    loaded.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
    x, y, weight = loaded.pieces(TEXTS, 7)
    found = loaded.evaluate(x, y, sample_weight=weight, verbose=0)
    assert found == pytest.approx(expected, rel=1e-6)


def test_recomputed_activations_change_nothing():
    learned = []
    for recomputes in (False, True):
        keras.utils.set_random_seed(0)
        lm = tiny.randomize(tiny.causal_lm(None, gradient_checkpointing=recomputes))
        calls = tiny.calls_of([lm.backbone.transformer_layers[0].mlp_block])
        long = LongTexts(lm, B)
        # Eager, so that what is computed twice is called twice.
        long.compile(keras.optimizers.SGD(1e-2), weighted_metrics=[], run_eagerly=True)
        x = tiny.arrays(rows=2 * B)
        long.fit(x, np.roll(x["token_ids"], -1, axis=1), verbose=0)
        learned.append(([tiny.numpy(weight) for weight in lm.weights], len(calls)))
    (expected, once), (found, twice) = learned
    assert twice > once or keras.config.backend() == "jax"  # which traces it
    for weight, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(weight, other, 1e-5, 1e-6)
