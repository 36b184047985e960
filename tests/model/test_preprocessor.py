"""The preprocessor: rows, labels and weights, whatever the texts come in."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from keras_rgemma import RGemmaCausalLMPreprocessor

LENGTH = 10
TEXTS = ["The quick", "a", "", "The quick brown fox jumps over the lazy dog."]


@pytest.fixture
def preprocessor():
    return tiny.preprocessor(LENGTH)


def expected_row(text, start=True, end=True, length=LENGTH):
    """What a row must hold, written out: ids, mask, labels, weights."""
    ids = [int(id) for id in tiny.tokenizer()(text)]
    room = length + 1 - start - end
    row = [2] * start + ids[:room] + [1] * end
    pads = length + 1 - len(row)
    weights = [1] * len(row) + [0] * pads
    row = row + [0] * pads
    return row[:-1], weights[:-1], row[1:], weights[1:]


def assert_rows(outputs, texts, **kwargs):
    x, y, sample_weight = outputs
    assert set(x) == {"token_ids", "padding_mask"}
    got = [tiny.numpy(a) for a in (x["token_ids"], x["padding_mask"], y, sample_weight)]
    expected = zip(*(expected_row(text, **kwargs) for text in texts), strict=True)
    for received, rows in zip(got, expected, strict=True):
        np.testing.assert_array_equal(received, np.array(rows))
    assert got[0].dtype == got[2].dtype == "int32"


def test_a_list_of_texts(preprocessor):
    assert_rows(preprocessor(TEXTS), TEXTS)


def test_other_batches_of_texts(preprocessor):
    for batch in (np.array(TEXTS), tf.constant(TEXTS)):
        assert_rows(preprocessor(batch), TEXTS)


@pytest.mark.parametrize("text", TEXTS)
def test_one_text_gives_a_row_without_a_batch(preprocessor, text):
    x, y, sample_weight = preprocessor(text)
    for array in (x["token_ids"], x["padding_mask"], y, sample_weight):
        assert tuple(array.shape) == (LENGTH,)
    x = {key: value[None] for key, value in x.items()}
    assert_rows((x, y[None], sample_weight[None]), [text])


def test_tf_data_of_single_texts(preprocessor):
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).map(preprocessor).batch(len(TEXTS))
    (outputs,) = list(dataset.as_numpy_iterator())
    assert_rows(outputs, TEXTS)


def test_tf_data_of_batches(preprocessor):
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(3).map(preprocessor)
    for outputs, texts in zip(dataset.as_numpy_iterator(), (TEXTS[:3], TEXTS[3:]), strict=True):
        assert_rows(outputs, texts)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_start_and_end_tokens_can_be_left_out(start, end):
    preprocessor = tiny.preprocessor(LENGTH, add_start_token=start, add_end_token=end)
    assert_rows(preprocessor(TEXTS), TEXTS, start=start, end=end)


def test_another_sequence_length(preprocessor):
    assert_rows(preprocessor(TEXTS, sequence_length=5), TEXTS, length=5)
    own = tiny.preprocessor(LENGTH)
    assert_rows(own(TEXTS), TEXTS)
    own.sequence_length = 6
    assert_rows(own(TEXTS), TEXTS, length=6)


def test_labels_are_the_next_tokens(preprocessor):
    x, y, sample_weight = (keras.tree.map_structure(tiny.numpy, out) for out in preprocessor(TEXTS))
    np.testing.assert_array_equal(y[:, :-1], x["token_ids"][:, 1:])
    # A label counts where it is a token; nothing is learnt from pads or to predict pads.
    np.testing.assert_array_equal(sample_weight[:, :-1], x["padding_mask"][:, 1:])
    assert (y[sample_weight == 0] == 0).all()
    assert (x["token_ids"][x["padding_mask"] == 0] == 0).all()


def test_prompts_have_a_start_token_no_end_and_are_never_cut(preprocessor):
    prompts = preprocessor.prompt_token_ids(TEXTS)
    for prompt, text in zip(prompts, TEXTS, strict=True):
        assert prompt.dtype == "int32"
        assert list(prompt) == [2, *tiny.tokenizer()(text)]
    assert len(prompts[3]) > LENGTH


def test_prompts_without_a_start_token():
    preprocessor = tiny.preprocessor(LENGTH, add_start_token=False)
    (prompt,) = preprocessor.prompt_token_ids(["The quick"])
    assert list(prompt) == list(tiny.tokenizer()("The quick"))
    with pytest.raises(ValueError, match=r"Prompt 1 is empty.*add_start_token"):
        preprocessor.prompt_token_ids(["a", ""])
    assert len(preprocessor.prompt_token_ids(["a"])) == 1


def test_text_of_leaves_out_start_end_and_pads(preprocessor):
    ids = [int(id) for id in tiny.tokenizer()("The quick<end_of_turn>")]
    assert preprocessor.text_of([[2, *ids, 1, 0, 0], [], [2, 1], ids]) == [
        *("The quick<end_of_turn>", "", "", "The quick<end_of_turn>"),
    ]


def test_generate_preprocess(preprocessor):
    x = preprocessor.generate_preprocess(TEXTS[:3])
    for row, text in enumerate(TEXTS[:3]):
        ids, mask, _, _ = expected_row(text, end=False)
        np.testing.assert_array_equal(tiny.numpy(x["token_ids"])[row], ids)
        np.testing.assert_array_equal(tiny.numpy(x["padding_mask"])[row], mask)
    x = preprocessor.generate_preprocess("a", sequence_length=4)
    assert list(tiny.numpy(x["padding_mask"])) == [1, 1, 0, 0]
    assert tiny.numpy(x["token_ids"])[0] == 2


def test_generate_preprocess_adds_a_start_token_only_if_training_does():
    # Otherwise `generate` would continue another prompt than its own preprocessing makes.
    preprocessor = tiny.preprocessor(LENGTH, add_start_token=False)
    (prompt,) = preprocessor.prompt_token_ids(["The quick"])
    x = preprocessor.generate_preprocess(["The quick"])
    kept = tiny.numpy(x["token_ids"])[tiny.numpy(x["padding_mask"]) > 0]
    np.testing.assert_array_equal(kept, prompt)


def test_generate_postprocess_undoes_generate_preprocess(preprocessor):
    for texts in (TEXTS[:3], "The quick"):
        x = preprocessor.generate_preprocess(texts)
        assert preprocessor.generate_postprocess(x) == texts


@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_generate_postprocess_reads_both_kinds_of_masks(preprocessor, dtype):
    # Pads are what the mask says, whatever id they hold.
    ids, mask = np.array([[2, 358, 366, 366]]), np.array([[1, 1, 1, 0]], dtype)
    x = {"token_ids": ids, "padding_mask": mask}
    assert preprocessor.generate_postprocess(x) == [tiny.tokenizer().detokenize([358, 366])]


def test_generate_preprocessing_in_tf_data(preprocessor):
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS[:3]).batch(3)
    (x,) = list(dataset.map(preprocessor.generate_preprocess).as_numpy_iterator())
    eager = preprocessor.generate_preprocess(TEXTS[:3])
    for key in x:
        np.testing.assert_array_equal(x[key], tiny.numpy(eager[key]))


def test_configs_survive_a_round_trip():
    preprocessor = tiny.preprocessor(
        LENGTH, add_start_token=False, add_end_token=False, name="mine"
    )
    config = json.loads(json.dumps(preprocessor.get_config()))
    assert config["sequence_length"] == LENGTH
    assert config["add_start_token"] is False
    assert config["add_end_token"] is False
    assert config["name"] == "mine"
    revived = RGemmaCausalLMPreprocessor.from_config(json.loads(json.dumps(config)))
    assert type(revived) is RGemmaCausalLMPreprocessor
    assert revived.get_config() == config
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(preprocessor)))
    assert serialized["registered_name"] == "keras_rgemma>RGemmaCausalLMPreprocessor"
    revived = keras.saving.deserialize_keras_object(serialized)
    assert revived.get_config() == config
    revived.tokenizer.set_proto(tiny.proto())
    assert_rows(revived(TEXTS), TEXTS, start=False, end=False)


def test_unknown_arguments_are_refused():
    with pytest.raises((TypeError, ValueError), match="sequence_lenght"):
        RGemmaCausalLMPreprocessor(tiny.tokenizer(), sequence_lenght=4)
