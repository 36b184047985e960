"""Bad input gets an error that names it and the way out, and leaves the model usable."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tiny


@pytest.fixture(scope="module")
def lm():
    model = tiny.randomize(tiny.causal_lm(sequence_length=24))
    model.expected = model.generate("The quick", max_new_tokens=3)
    return model


@pytest.fixture(autouse=True)
def still_works(lm):
    yield
    assert lm.generate("The quick", max_new_tokens=3) == lm.expected


def ids(*rows):
    return np.array(rows, "int32")


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=str), tf.data.Dataset.range(0)])
def test_no_prompts(lm, empty):
    with pytest.raises(ValueError, match="at least one prompt"):
        lm.generate(empty)


def test_an_empty_prompt_without_a_start_token(lm):
    lm.preprocessor.add_start_token = False
    try:
        with pytest.raises(ValueError, match=r"Prompt 1 is empty.*add_start_token"):
            lm.generate(["The", ""])
    finally:
        lm.preprocessor.add_start_token = True


@pytest.mark.parametrize("bad", [400, -1])
def test_ids_outside_of_the_vocabulary(lm, bad):
    with pytest.raises(ValueError, match=rf"\[0, 400\).*{bad} in row 1, column 2"):
        lm.generate({"token_ids": ids([2, 5, 6], [2, 5, bad])}, max_new_tokens=2)
    with pytest.raises(ValueError, match=rf"stop_token_ids.*{bad}"):
        lm.generate("The", stop_token_ids=[bad])


def test_a_tokenizer_with_more_tokens_than_the_model(lm):
    """Some backends would read the embedding of another token, without a word."""
    backbone = tiny.backbone(vocabulary_size=100)
    with pytest.raises(ValueError, match=r"tokenizer has 400 tokens.* only 100"):
        type(lm)(backbone, lm.preprocessor)
    bare = type(lm)(backbone)
    bare.preprocessor = lm.preprocessor
    with pytest.raises(ValueError, match=r"tokenizer has 400 tokens.* only 100"):
        bare.generate("The")


def test_a_backbone_that_is_none(lm):
    with pytest.raises(TypeError, match=r"'rgemma_tiny_en'.*RGemmaCausalLM\.from_preset"):
        type(lm)("rgemma_tiny_en")


def test_rows_of_several_lengths(lm):
    with pytest.raises(ValueError, match=r"`token_ids`.*\[\[2, 5, 6\], \[2, 5\]\].*Pad"):
        lm.generate({"token_ids": [[2, 5, 6], [2, 5]]}, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"`token_ids`.*Pad"):
        ragged = tf.ragged.constant([[2, 5, 6], [2, 5]])
        lm.generate({"token_ids": ragged}, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"`token_ids`.*Pad"):
        lm.score([[2, 5, 6], [2, 5]])


def test_a_mask_of_none_is_no_mask(lm):
    plain = lm.generate({"token_ids": ids([2, 5, 6])}, max_new_tokens=2)
    given = {"token_ids": ids([2, 5, 6]), "padding_mask": None}
    np.testing.assert_array_equal(
        lm.generate(given, max_new_tokens=2)["token_ids"], plain["token_ids"]
    )


def test_a_direct_call_with_another_mask_or_without_tokens(lm):
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 2\)"):
        lm({"token_ids": ids([2, 5, 6]), "padding_mask": ids([1, 1])})
    with pytest.raises(ValueError, match="no token"):
        lm({"token_ids": np.zeros((1, 0), "int32"), "padding_mask": np.zeros((1, 0), "int32")})


def test_ids_that_are_no_integers(lm):
    with pytest.raises(ValueError, match="float64"):
        lm.generate({"token_ids": np.array([[1.5, 2.0]])}, max_new_tokens=2)


def test_a_mask_of_another_shape(lm):
    inputs = {"token_ids": ids([2, 5, 6]), "padding_mask": ids([1, 1])}
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 2\)"):
        lm.generate(inputs, max_new_tokens=2)


def test_ids_without_a_batch_axis(lm):
    with pytest.raises(ValueError, match=r"\[batch, tokens\].*\(3,\)"):
        lm.generate({"token_ids": ids(2, 5, 6)}, max_new_tokens=2)


def test_a_row_without_tokens_or_with_two_documents(lm):
    token_ids = ids([2, 5, 6], [2, 5, 6])
    with pytest.raises(ValueError, match="Row 1 holds no token"):
        inputs = {"token_ids": token_ids, "padding_mask": ids([1, 1, 1], [0, 0, 0])}
        lm.generate(inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"Row 1 .* 2 documents"):
        inputs = {"token_ids": token_ids, "padding_mask": ids([1, 1, 1], [1, 1, 2])}
        lm.generate(inputs, max_new_tokens=2)


def test_a_limit_shorter_than_the_prompt(lm):
    with pytest.raises(ValueError, match=r"`max_length`=2 is shorter than prompt 0.*never cut"):
        lm.generate("The quick brown fox", max_length=2)


@pytest.mark.parametrize("limit", [{"max_length": -1}, {"max_new_tokens": -3}])
def test_a_negative_limit(lm, limit):
    with pytest.raises(ValueError, match=str(*limit.values())):
        lm.generate("The", **limit)


def test_a_limit_that_is_no_count(lm):
    with pytest.raises(ValueError, match=r"2\.5"):
        lm.generate("The", max_new_tokens=2.5)


def test_a_limit_out_of_reach(lm):
    with pytest.raises(ValueError, match=rf"at most {2**22}.*{2**31}"):
        lm.generate("The", max_new_tokens=2**31)


def test_both_limits(lm):
    with pytest.raises(ValueError, match=r"not both.*max_length=9, max_new_tokens=3"):
        lm.generate("The", max_length=9, max_new_tokens=3)


def test_prompts_that_are_no_text(lm):
    with pytest.raises(TypeError, match="token_ids"):
        lm.generate([[2, 5, 6]])
    with pytest.raises(TypeError, match="42"):
        lm.generate(42)


@pytest.mark.parametrize("prompt", ["a\ud800b", b"\xff"])
def test_prompts_that_are_no_unicode(lm, prompt):
    with pytest.raises(ValueError, match=r"valid Unicode.*replace"):
        lm.generate(["The", prompt])


@pytest.mark.parametrize("stops", ["never", 1, ["x"], [1.7], [[1]]])
def test_unknown_stop_tokens(lm, stops):
    with pytest.raises(ValueError, match=r"`stop_token_ids` must be 'auto', None or") as error:
        lm.generate("The", stop_token_ids=stops)
    assert repr(stops) in str(error.value)


def test_a_model_without_a_preprocessor(lm):
    bare = type(lm)(lm.backbone)
    with pytest.raises(ValueError, match=r"preprocessor.*None"):
        bare.generate({"token_ids": ids([2, 5])}, max_new_tokens=2)
    with pytest.raises(ValueError, match="'The'"):
        bare.generate("The", max_new_tokens=2, stop_token_ids=None)


def test_samplers_that_generate_cannot_use(lm):
    import keras_hub

    other = type(lm)(lm.backbone)
    with pytest.raises(ValueError, match="return_all_beams"):
        other.compile(sampler=keras_hub.samplers.BeamSampler(return_all_beams=True))
    with pytest.raises(ValueError, match=r"'gredy'.*'greedy'\?"):
        other.compile(sampler="gredy")
    for bad in (None, keras_hub.samplers.TopKSampler, 3):
        with pytest.raises(ValueError, match="must be one of"):
            other.compile(sampler=bad)
    for kind, numbers in (
        ("TopKSampler", {"k": 401}),
        ("TopPSampler", {"k": 0}),
        ("ContrastiveSampler", {"k": -1}),
        ("BeamSampler", {"num_beams": 0}),
        ("BeamSampler", {"num_beams": 401}),
        ("RandomSampler", {"temperature": 0.0}),
    ):
        (name, number), *_ = numbers.items()
        with pytest.raises(ValueError, match=rf"`{name}`.*Received: {number}"):
            other.compile(sampler=getattr(keras_hub.samplers, kind)(**numbers))
    assert other.generate({"token_ids": ids([2, 5])}, max_new_tokens=1, stop_token_ids=None)


@pytest.mark.parametrize("length", [0, -3, None, 2.5])
def test_a_sequence_length_that_is_no_count(length):
    with pytest.raises(ValueError, match=rf"`sequence_length`.*{length}"):
        tiny.preprocessor(sequence_length=length)


@pytest.mark.slow
def test_a_backend_that_is_not_supported():
    code = "import keras_rgemma; keras_rgemma.RGemmaCausalLM.from_preset('rgemma_tiny_en')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
    )
    assert "keras-rgemma runs on the Keras backends" in done.stderr
    assert "Received: 'numpy'" in done.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_query_heads": 3}, "`num_query_heads`=3.*`hidden_dim`=16"),
        ({"lru_dim": 25}, "`lru_dim`=25"),
        ({"block_types": ("recurrent", "mamba")}, "'mamba'"),
        ({"num_layers": -1}, "`num_layers`.*-1"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        tiny.backbone(**change)
