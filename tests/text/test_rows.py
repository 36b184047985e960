"""Examples: which tokens the loss falls on, packing, what is cut, and every form of data."""

import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tiny
from backend_independent import backend_independent
from keras_rgemma.text.documents import Document
from keras_rgemma.text.packing import pack

PROMPTS = ["What is a river?", "The quick brown", "She"]
RESPONSES = [" A river is water.", " fox", " sells sea shells"]
PAIRS = {"prompts": PROMPTS, "responses": RESPONSES}
CHAT = [
    {"role": "user", "content": " What is a river?<end_of_turn>"},
    {"role": "model", "content": "Water. "},
    {"role": "user", "content": "And the sea?"},
    {"role": "model", "content": "More water."},
]


def numpy(rows):
    x, y, weight = keras.tree.map_structure(tiny.numpy, rows)
    return x["token_ids"], x["padding_mask"], y, weight


def text(ids):
    return tiny.tokenizer().detokenize([int(id) for id in ids])


# === Which tokens count ===


@backend_independent
def test_the_loss_falls_on_responses():
    preprocessor = tiny.preprocessor(32)
    token_ids, mask, y, weight = numpy(preprocessor(PAIRS))
    assert token_ids.shape == mask.shape == y.shape == weight.shape == (3, 32)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        tokens = [2, *preprocessor.tokenizer(prompt), *preprocessor.tokenizer(response), 1]
        count = len(tokens) - 1
        assert token_ids[row, :count].tolist() == tokens[:-1]
        assert y[row, :count].tolist() == tokens[1:]
        assert mask[row].tolist() == [1] * count + [0] * (32 - count)
        assert text(y[row][weight[row] > 0][:-1]) == response
        assert y[row][weight[row] > 0][-1] == 1
    single = numpy(preprocessor({"prompts": PROMPTS[0], "responses": RESPONSES[0]}))
    np.testing.assert_array_equal(single[0], token_ids[0])


@backend_independent
def test_the_loss_falls_on_the_answers_of_a_conversation():
    preprocessor = tiny.preprocessor(64)
    token_ids, _, y, weight = numpy(preprocessor([CHAT]))
    start, end = preprocessor.tokenizer.control_token_ids()
    counted = y[0][weight[0] > 0]
    assert text(counted[counted != end]) == "Water.More water."
    assert (counted == end).sum() == 2
    assert (token_ids[0] == start).sum() == 4  # and none from what the user typed
    # What the model sees before its answer is what it sees in a chat.
    lm = tiny.wordy(tiny.causal_lm(sequence_length=8))
    chat = lm.chat(max_new_tokens=1)
    chat.send(CHAT[0]["content"])
    before = int(weight[0].argmax()) + 1
    seen = lm.prefill(token_ids[0, :before])
    expected = tiny.numpy(chat.state.num_tokens)
    assert expected.tolist() == [before + 1]
    assert int(tiny.numpy(seen.last_token_ids)[0]) == token_ids[0, before - 1]


@backend_independent
def test_conversations_that_are_malformed():
    preprocessor = tiny.preprocessor(64)
    with pytest.raises(ValueError, match="ends with the model's answer"):
        preprocessor([CHAT[:1]])
    with pytest.raises(ValueError, match="in turn"):
        preprocessor([CHAT[1:]])
    with pytest.raises(ValueError, match=r"'prompts' and 'responses'.*with the keys \['body'\]"):
        preprocessor([{"body": "a"}])
    with pytest.raises(ValueError, match="There are 3 prompts and 2 responses"):
        preprocessor({"prompts": PROMPTS, "responses": RESPONSES[:2]})
    with pytest.raises(TypeError, match="An example is a text"):
        preprocessor({"prompts": [3], "responses": ["a"]})
    with pytest.raises(ValueError, match="There is no example"):
        preprocessor({"prompts": [], "responses": []})
    with pytest.raises(ValueError, match="Pass `x` alone"):
        preprocessor(PAIRS, y=np.zeros(3))


@backend_independent
def test_pairs_of_texts_are_prompts_and_responses():
    preprocessor = tiny.preprocessor(32)
    pairs = list(zip(PROMPTS, RESPONSES, strict=True))
    for found, expected in zip(numpy(preprocessor(pairs)), numpy(preprocessor(PAIRS)), strict=True):
        np.testing.assert_array_equal(found, expected)
    for wrong in ([("the", "sea", "moon")], [["the", "sea"]], [[]], [("the",)]):
        with pytest.raises(TypeError, match="A list among the examples is a conversation"):
            preprocessor(wrong)
    token_ids, _, _, _ = numpy(preprocessor([tuple(CHAT)]))
    np.testing.assert_array_equal(token_ids, numpy(preprocessor([CHAT]))[0])


@backend_independent
def test_nothing_is_learned_from_nothing():
    for packing in (False, True):
        bare = tiny.preprocessor(8, packing=packing, add_start_token=False, add_end_token=False)
        _, mask, _, weight = numpy(bare([("", ""), ("a river", "is")]))
        assert weight.sum() > 0 and (mask.sum(axis=1) > 0).sum() == 1


@backend_independent
def test_what_is_cut_is_reported():
    with pytest.warns(UserWarning, match=r"2 of 3 examples .*sequence_length=8 .*; of 1 of these"):
        preprocessor = tiny.preprocessor(8)
        _, _, _, weight = numpy(preprocessor(PAIRS))
    assert weight.sum(axis=1).tolist() == [2, 0, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.preprocessor(64)(PAIRS)
        tiny.preprocessor(4, packing=True)(["The quick brown fox", "a"])


# === Packing ===


@backend_independent
def test_packed_rows_hold_every_label_once():
    texts = [*tiny.SENTENCES, "a", "The quick brown"]
    preprocessor = tiny.preprocessor(24, packing=True)
    token_ids, mask, y, weight = numpy(preprocessor(texts))
    assert token_ids.shape[1] == 24 and (weight == (mask > 0)).all()
    expected = {}
    for tokens in ([2, *preprocessor.tokenizer(sentence), 1] for sentence in texts):
        for start in range(0, len(tokens) - 1, 24):
            part = tuple(tokens[start : start + 25])
            expected[part] = expected.get(part, 0) + 1
    found = {}
    for row in range(len(mask)):
        for number in range(1, mask[row].max() + 1):
            place = mask[row] == number
            assert (np.diff(np.flatnonzero(place)) == 1).all()
            part = (*token_ids[row][place].tolist(), int(y[row][place][-1]))
            found[part] = found.get(part, 0) + 1
    assert found == expected
    assert (mask > 0).mean() > 0.85


@backend_independent
@given(sizes=st.lists(st.integers(1, 12), max_size=200))
def test_packing_loses_nothing_and_leaves_little_room(sizes):
    documents = [Document([i] * size, [True] * size, True) for i, size in enumerate(sizes)]
    rows = list(pack(iter(documents), 11))
    packed = [document for row in rows for document in row]
    kept = sorted(document.ids[0] for document in packed)
    assert kept == [i for i, size in enumerate(sizes) if size > 1]
    used = [sum(len(document.ids) - 1 for document in row) for row in rows]
    assert all(0 < size <= 11 for size in used)
    # Two rows that are half empty would have been one.
    assert sum(size <= 5 for size in used) <= 1


def gradients_of(lm, x, y, weight):
    """What a step of plain gradient descent subtracts, scaled to the sum over all tokens."""
    before = [tiny.numpy(variable) for variable in lm.trainable_variables]
    lm.train_on_batch(x, y, sample_weight=weight)
    found = [
        (tiny.numpy(variable) - value) * weight.size
        for variable, value in zip(lm.trainable_variables, before, strict=True)
    ]
    for variable, value in zip(lm.trainable_variables, before, strict=True):
        variable.assign(value)
    return found


def test_a_packed_row_learns_what_its_documents_do_alone():
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm(None))
    lm.compile(keras.optimizers.SGD(1.0))
    texts = {"prompts": ["What is a", "The", "She sells"], "responses": [" river", " fox", " sea"]}
    x, y, weight = tiny.preprocessor(28, packing=True)(texts)
    assert x["padding_mask"].shape == (1, 28) and x["padding_mask"].max() == 3
    assert 0 < weight.sum() < (x["padding_mask"] > 0).sum()
    alone = tiny.preprocessor(28)(texts)
    loss = lm.test_on_batch(x, y, sample_weight=weight)[0] * weight.size
    expected = lm.test_on_batch(alone[0], alone[1], sample_weight=alone[2])[0] * alone[2].size
    assert loss == pytest.approx(expected, rel=1e-5)
    packed, single = gradients_of(lm, x, y, weight), gradients_of(lm, *alone)
    for variable, found, value in zip(lm.trainable_variables, packed, single, strict=True):
        # Read from weights that moved: what float32 keeps of a step beside them.
        np.testing.assert_allclose(found, value, 1e-5, 1e-5 * np.abs(value).max() + 3e-5)
        assert np.abs(value).max() > 1e-3, variable.path


# === Forms of data ===


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(0)
    lm = tiny.causal_lm(sequence_length=32)
    lm.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
    return lm


def fitted(lm, data, packing=False, **kwargs):
    lm.preprocessor = tiny.preprocessor(32, packing=packing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lm.fit(data, shuffle=False, verbose=0, **kwargs).history["loss"][0]


def evaluated(lm, data, packing=False):
    """From arrays that were made beforehand."""
    lm.preprocessor = None
    rows = tiny.preprocessor(32, packing=packing)(data)
    x, y, weight = keras.tree.map_structure(tiny.numpy, rows)
    return lm.evaluate(x, y, sample_weight=weight, verbose=0, batch_size=4)


def test_fit_takes_pairs_in_every_form(lm):
    expected = evaluated(lm, PAIRS)
    singles = [{"prompts": p, "responses": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    dataset = tf.data.Dataset.from_tensor_slices(PAIRS).batch(4)
    for data in (PAIRS, singles, iter(singles), dataset, dataset.map(tiny.preprocessor(32))):
        kwargs = {} if isinstance(data, tf.data.Dataset) else {"batch_size": 4}
        assert fitted(lm, data, **kwargs) == pytest.approx(expected, rel=1e-5)
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert abs(evaluated(lm, texts) - expected) > 0.1


def test_fit_takes_grain_datasets_of_pairs(lm):
    grain = pytest.importorskip("grain")
    singles = [{"prompts": p, "responses": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    dataset = grain.MapDataset.source(singles).batch(4)
    assert fitted(lm, dataset) == pytest.approx(evaluated(lm, PAIRS), rel=1e-5)
    expected = evaluated(lm, PAIRS, packing=True)
    assert fitted(lm, dataset, packing=True) == pytest.approx(expected, rel=1e-5)


def test_fit_takes_conversations(lm):
    chats = [CHAT[:2], CHAT[2:], CHAT[2:]]
    expected = evaluated(lm, chats)
    assert fitted(lm, chats, batch_size=4) == pytest.approx(expected, rel=1e-5)
    assert fitted(lm, iter(chats), batch_size=4) == pytest.approx(expected, rel=1e-5)


def test_fit_packs_in_every_form(lm):
    texts = list(tiny.SENTENCES)
    expected = evaluated(lm, texts, packing=True)
    dataset = tf.data.Dataset.from_tensor_slices(texts).batch(4)
    for data in (texts, np.array(texts), iter(texts), dataset):
        kwargs = {} if isinstance(data, tf.data.Dataset) else {"batch_size": 4}
        assert fitted(lm, data, packing=True, **kwargs) == pytest.approx(expected, rel=1e-5)
    lm.preprocessor = tiny.preprocessor(32, packing=True)
    assert lm.evaluate(texts, batch_size=4, verbose=0) == pytest.approx(expected, rel=1e-5)
    history = lm.fit(texts, batch_size=4, validation_data=texts, verbose=0).history
    assert history["val_loss"][0] == pytest.approx(expected, rel=1e-5)
    prepared = dataset.map(tiny.preprocessor(32)).take(1)
    assert np.isfinite(fitted(lm, prepared, packing=True))


def test_predict_gives_each_example_a_row_and_lets_others_pack(lm, monkeypatch):
    grain = pytest.importorskip("grain")
    texts = list(tiny.SENTENCES[:3])
    lm.preprocessor = tiny.preprocessor(32)
    expected = lm.predict(texts, verbose=0)
    assert expected.shape == (3, 32, 400)
    lm.preprocessor = tiny.preprocessor(32, packing=True)
    tokenizer = type(lm.preprocessor.tokenizer)
    seen, original = [], tokenizer.token_id_rows

    def token_id_rows(self, *args):
        seen.append(lm.preprocessor.packing)  # as another thread finds it
        return original(self, *args)

    monkeypatch.setattr(tokenizer, "token_id_rows", token_id_rows)
    for data in (
        texts,
        np.array(texts),
        tf.data.Dataset.from_tensor_slices(texts).batch(2),
        grain.MapDataset.source(texts).batch(2),
        tiny.preprocessor(32)(texts)[0],
    ):
        np.testing.assert_allclose(lm.predict(data, verbose=0), expected, atol=1e-5)
    assert len(seen) > 4 and all(seen)


def test_validation_takes_texts_as_fit_does(lm):
    lm.preprocessor = tiny.preprocessor(32)
    expected = lm.evaluate(PROMPTS, batch_size=4, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices(PROMPTS).batch(4)
    for validation in (PROMPTS, (PROMPTS,), dataset):
        history = lm.fit(PROMPTS, batch_size=4, validation_data=validation, verbose=0).history
        assert history["val_loss"][0] == pytest.approx(expected, rel=1e-5)


@backend_independent
def test_examples_of_several_kinds_stand_in_any_order(lm):
    kinds = ["The quick brown fox.", (PROMPTS[0], RESPONSES[0]), CHAT]
    expected = evaluated(lm, kinds[::-1])
    for data in (kinds, kinds[::-1], tuple(kinds)):
        assert fitted(lm, data, batch_size=4) == pytest.approx(expected, rel=1e-5)
    texts = tf.constant(PROMPTS)
    assert fitted(lm, texts) == pytest.approx(evaluated(lm, PROMPTS), rel=1e-5)
    pairs = {key: tf.constant(value) for key, value in PAIRS.items()}
    assert fitted(lm, pairs) == pytest.approx(evaluated(lm, PAIRS), rel=1e-5)


@backend_independent
def test_labels_beside_examples_are_refused(lm):
    grain = pytest.importorskip("grain")
    lm.preprocessor = tiny.preprocessor(32)
    classes = tf.data.Dataset.from_tensor_slices((PROMPTS, [0, 1, 2])).batch(4)
    pairs = grain.MapDataset.source([(PAIRS, [0, 1, 2])])
    for data in (
        {"x": PAIRS, "y": np.ones(3)},
        {"x": [CHAT], "y": np.zeros(1), "sample_weight": np.zeros(1)},
        {"x": PROMPTS, "y": RESPONSES},
        {"x": classes},
        {"x": pairs},
    ):
        for method in (lm.fit, lm.evaluate):
            with pytest.raises(ValueError, match="as a dict of 'prompts' and 'responses'"):
                method(**data, verbose=0)


@backend_independent
def test_data_without_an_end_need_steps(lm):
    grain = pytest.importorskip("grain")
    texts = list(tiny.SENTENCES)
    for packing in (False, True):
        lm.preprocessor = tiny.preprocessor(32, packing=packing)
        for data in (
            tf.data.Dataset.from_tensor_slices(texts).batch(4).repeat(),
            grain.MapDataset.source(texts).batch(4).repeat(),
        ):
            for read in (lm.preprocessor, lm.evaluate, lm.fit):
                with pytest.raises(ValueError, match="Leave `repeat` out"):
                    read(data)
            history = lm.fit(data, steps_per_epoch=2, epochs=2, shuffle=False, verbose=0).history
            assert np.isfinite(history["loss"]).all()


@backend_independent
def test_fit_refuses_responses_that_are_cut_away(lm):
    pairs = {"prompts": 3 * PROMPTS, "responses": 3 * RESPONSES}
    kept = {"prompts": [*PROMPTS[::2]], "responses": [*RESPONSES[::2]]}
    lm.preprocessor = tiny.preprocessor(8)
    for method in (lm.fit, lm.evaluate):
        with pytest.raises(ValueError, match=r"whole response of 3 of 9 examples; .* example 1"):
            method(pairs, batch_size=2, verbose=0)
    with pytest.warns(UserWarning, match="2 of 3 examples .*; of 1 of these"):
        assert lm.predict(PAIRS, verbose=0).shape == (3, 8, 400)  # it has no loss
    lm.preprocessor.lost_responses = "skip"
    with pytest.warns(UserWarning, match="6 of 9 examples .*of 3 of these .* they were skipped"):
        found = lm.evaluate(pairs, batch_size=6, verbose=0)
    with pytest.warns(UserWarning, match="1 of 2 examples .*was cut. Raise"):
        assert found == pytest.approx(lm.evaluate(kept, verbose=0), rel=1e-5)
    lm.preprocessor.lost_responses = "keep"
    with pytest.warns(UserWarning, match="6 of 9 examples .*of 3 of these nothing is left"):
        kept = lm.evaluate(pairs, batch_size=9, verbose=0)
    assert kept == pytest.approx(found * 6 / 9, rel=1e-5)  # over all positions


@backend_independent
def test_sources_skip_responses_that_are_cut_away(lm):
    rows = 3 * [{"prompts": p, "responses": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    lm.preprocessor = tiny.preprocessor(8, lost_responses="skip")
    with pytest.warns(UserWarning, match="6 of 9"):
        expected = lm.evaluate(rows, batch_size=6, verbose=0)
    lm.preprocessor.lost_responses = "auto"
    with pytest.warns(UserWarning, match="6 of 9 examples .*of 3 of these .* skipped") as caught:
        history = lm.fit(iter(rows), batch_size=6, epochs=3, verbose=0).history["loss"]
    assert sum("skipped" in str(warning.message) for warning in caught) == 1
    np.testing.assert_allclose(history, 3 * [expected], rtol=1e-5)
    batches = [rows[:2], [rows[1], rows[4]], rows[3:]]  # the second one is lost as a whole
    with pytest.warns(UserWarning, match="of 5 of these"):
        assert np.isfinite(lm.fit(iter(batches), verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match="whole response of 2 of 2 examples"):
        lm.fit(iter([batches[1]]), verbose=0)
    lm.preprocessor.lost_responses = "error"
    with pytest.raises(ValueError, match="whole response of 1 of 2 examples; the first is"):
        lm.fit(iter(rows), verbose=0)
    with pytest.raises(ValueError, match="whole response of 1 of 3"):
        lm.preprocessor(PAIRS)
    with pytest.raises(ValueError, match="`lost_responses` is one of"):
        tiny.preprocessor(lost_responses="drop")


@backend_independent
def test_threads_make_one_preprocessor(lm, monkeypatch):
    grain = pytest.importorskip("grain")
    original = type(tiny.preprocessor()).build

    def build(preprocessor, shape):
        time.sleep(0.1)  # until the other threads are here, too
        original(preprocessor, shape)

    monkeypatch.setattr(type(tiny.preprocessor()), "build", build)
    source = grain.MapDataset.source(4 * PROMPTS).batch(2)
    assert np.isfinite(fitted(lm, source))


@backend_independent
def test_packing_is_a_setting_of_the_preprocessor(tmp_path):
    preprocessor = tiny.preprocessor(packing=True)
    assert preprocessor.get_config()["packing"] is True
    assert type(preprocessor).from_config(preprocessor.get_config()).packing is True
    lm = tiny.causal_lm(preprocessor)
    lm.save_to_preset(str(tmp_path))
    assert type(lm).from_preset(str(tmp_path)).preprocessor.packing is True
    ids = preprocessor.generate_preprocess(["a"], sequence_length=4)["token_ids"]
    assert ids.shape == (1, 4)
