"""What a model computes follows from its dtype policy, whatever `keras.config.floatx` is."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_rgemma
import tiny

IDS = np.array([[2, 260, 301, 302, 33, 300, 7], [2, 299, 12, 310, 0, 0, 0]])
MASK = (IDS > 0).astype("int32")
RATE = 0.125  # Keras' optimizers keep theirs in floatx, which has no 0.1
# Each floatx and each policy at least once, and each floatx beside a policy of another width.
PAIRS = [
    ("bfloat16", "float32"),
    ("float16", "bfloat16"),
    ("float16", "float16"),
    ("bfloat16", "mixed_float16"),
    ("float16", "mixed_bfloat16"),
]
WITH_MORE = ("float32", "mixed_bfloat16")  # LoRA and a search, which take long to compile


@pytest.fixture(autouse=True)
def restored():
    yield
    keras.config.set_floatx("float32")


def model(policy, **sizes):
    """A model whose values are those of every other one."""
    lm = keras_rgemma.RGemmaCausalLM(
        tiny.randomize(tiny.backbone(dtype=policy, **sizes)), tiny.preprocessor(16)
    )
    lm.compile(keras.optimizers.SGD(RATE))
    return lm


def results(policy):
    """Everything that people ask of a model, as float32 or int arrays."""
    lm = model(policy)
    inputs = {"token_ids": IDS, "padding_mask": MASK}
    state = lm.prefill(IDS[:1, :5], chunk_size=3)
    texts = lm.generate(["The quick", "A"], max_new_tokens=5, stop_token_ids=None)
    rest, later = lm.generate(
        " fox", state=state, max_new_tokens=4, stop_token_ids=None, return_state=True
    )
    assert later[[0, 0]].batch_size == 2
    found = {
        "logits": lm.score(**inputs),
        "losses": lm.score(**inputs, scoring_mode="loss", target_ids=np.roll(IDS, -1, axis=1)),
        "state": keras.tree.flatten(later)[-1],
    }
    before = [tiny.numpy(weight) for weight in lm.weights]
    # Unshuffled, since the order of two rows changes the last bit of a sum in 16 bits.
    texts_learned = ["The quick brown fox", "What is a river?"]
    lm.fit(texts_learned, batch_size=2, shuffle=False, verbose=0)
    found["step"] = np.concatenate(
        [(tiny.numpy(w) - b).ravel() for w, b in zip(lm.weights, before, strict=True)]
    )
    if policy in WITH_MORE:
        lm.backbone.enable_lora(2)
        lm.compile(keras.optimizers.SGD(RATE), sampler="beam")
        lm.fit({"prompts": ["What is"], "responses": [" a river?"]}, verbose=0)
        found["B"] = np.concatenate(
            [tiny.numpy(weight).ravel() for weight in lm.trainable_weights if "lora" in weight.path]
        )
        rest += lm.generate("The quick", max_new_tokens=4, stop_token_ids=None)
    assert np.abs(found["step"]).max() > 0
    # In 16 bits Keras on TensorFlow returns tensors here, of which NumPy makes no array.
    assert np.isfinite([float(x) for x in lm.evaluate(["a"], verbose=0)]).all()
    arrays = {name: np.asarray(tiny.numpy(x), "float32") for name, x in found.items()}
    return arrays, [texts, rest]


@pytest.mark.parametrize("floatx, policy", PAIRS)
def test_floatx_changes_nothing(floatx, policy):
    expected, expected_texts = results(policy)
    keras.config.set_floatx(floatx)
    keras.utils.set_random_seed(0)
    found, texts = results(policy)
    assert texts == expected_texts
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, 1e-5, 1e-6, err_msg=name)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_the_loss_of_many_batches_is_their_mean(floatx):
    lm = tiny.causal_lm(sequence_length=8)
    texts = ["The sea"] * 300 + ["What is a river?"] * 200
    expected = lm.evaluate(texts, batch_size=500, verbose=0)[0]
    keras.config.set_floatx(floatx)
    lm.compile(keras.optimizers.SGD(0.0))
    found = lm.evaluate(texts, batch_size=1, verbose=0)[0]
    np.testing.assert_allclose(float(found), expected, 1e-4)
    history = lm.fit(texts, batch_size=1, verbose=0).history
    np.testing.assert_allclose(float(history["loss"][0]), expected, 1e-4)


QUICKSTART = """
import keras

keras.config.set_floatx("bfloat16")
import keras_rgemma

lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
assert lm.dtype_policy.name == "bfloat16"
assert {keras.backend.standardize_dtype(weight.dtype) for weight in lm.weights} == {"bfloat16"}
lm.generate("In the beginning", max_new_tokens=2)
lm.preprocessor.sequence_length = 8
lm.backbone.enable_lora(2)
lm.fit(["a b"], verbose=0)
"""


def test_the_first_lines_of_googles_quickstart():
    """Before anything else, as the default policy follows floatx only then."""
    done = subprocess.run([sys.executable, "-c", QUICKSTART], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("floatx", ["float32", "float16", "bfloat16"])
def test_the_loss_of_a_quantized_head_with_many_tokens(floatx):
    """An int16 cannot count 40,000 rows of an embedding, nor can bfloat16 tell them apart."""
    keras.config.set_floatx(floatx)
    lm = model("float32", vocabulary_size=40_000, hidden_dim=8, intermediate_dim=8)
    lm.backbone.token_embedding.quantize("int8")
    random = np.random.RandomState(0)
    ids = random.randint(33_000, 40_000, (2, 5)).astype("int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    labels = np.roll(ids, -1, axis=1)
    lm.compile(keras.optimizers.SGD(RATE))
    found = lm.evaluate(inputs, labels, verbose=0)[0]
    losses = lm.score(**inputs, scoring_mode="loss", target_ids=labels)
    logits = np.asarray(tiny.numpy(lm.score(**inputs)), "float64")
    log_sum = np.log(np.exp(logits).sum(axis=-1))
    expected = log_sum - np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    # Keras rounds hidden states in the logits of an int8 head, not in the default loss.
    np.testing.assert_allclose(tiny.numpy(losses), expected, 1e-5)
    np.testing.assert_allclose(float(found), expected.mean(), 1e-3)
