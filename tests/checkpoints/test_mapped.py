"""Tensors are read from the pages of their files; a model never writes to them."""

import hashlib

import keras
import ml_dtypes
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from generation import plain
from keras_rgemma import RGemmaCausalLM
from keras_rgemma.checkpoints import safetensors
from keras_rgemma.checkpoints.tensors import arrays

BACKEND = keras.config.backend()
PROMPTS = {"token_ids": np.array([[2, 17, 33, 8, 21], [2, 5, 9, 12, 30]])}


@backend_independent
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_arrays_of_a_file(dtype, tmp_path):
    dtype = np.dtype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    shapes = {"a": (5, 3), "none": (0, 3), "one": (), "b": (2, 3, 4)}
    written = {x: np.arange(np.prod(s)).reshape(s).astype(dtype) for x, s in shapes.items()}
    safetensors.write(tmp_path, written.items())
    before = hashed(tmp_path)
    source = safetensors.SafetensorsFolder(tmp_path)
    for name, expected in written.items():
        found = source.read(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(found, expected)
        found[...] = 7  # a page of the process, not of the file
        np.testing.assert_array_equal(source.read(name), expected)
    np.testing.assert_array_equal(source.read("a", rows=slice(1, 4)), written["a"][1:4])
    assert hashed(tmp_path) == before


@backend_independent
def test_a_file_that_goes_after_it_was_opened(tmp_path):
    safetensors.write(tmp_path, [("a", np.ones((2, 3), "float32"))])
    source = safetensors.SafetensorsFolder(tmp_path)
    (tmp_path / safetensors.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"'model.safetensors' in .* is missing or broken"):
        source.read("a")


def hashed(folder):
    return {x.name: hashlib.sha256(x.read_bytes()).hexdigest() for x in folder.iterdir()}


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def folder(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    lm = plain.lively_model(dtype=request.param, gain=1.0, scale_embeddings=True)
    path = tmp_path_factory.mktemp(request.param) / "huggingface"
    lm.backbone.export_to_transformers(path)
    return path, request.param


def load(folder, monkeypatch, smallest):
    """Loads a model whose matrices of `smallest` bytes or more stay as they lie in the file."""
    path, dtype = folder
    monkeypatch.setattr(arrays, "WORTH_THREADS", smallest)
    return RGemmaCausalLM.from_preset(str(path), dtype=dtype, preprocessor=None)


def tokens(lm, rows):
    prompts = {"token_ids": PROMPTS["token_ids"][:rows]}
    return lm.generate(prompts, max_new_tokens=7, stop_token_ids=None)["token_ids"]


def test_a_model_is_the_same_however_its_matrices_lie(folder, monkeypatch):
    mapped, copied = (load(folder, monkeypatch, smallest) for smallest in (0, 1 << 40))
    for one, other in zip(mapped.variables, copied.variables, strict=True):
        assert (one.path, one.dtype) == (other.path, other.dtype)
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))
    for rows in (2, 1, 2):
        np.testing.assert_array_equal(tokens(mapped, rows), tokens(copied, rows))
    for one, other in zip(mapped.variables, copied.variables, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))


def test_training_and_rounding_change_no_file(folder, monkeypatch):
    before = hashed(folder[0])
    x = {"token_ids": PROMPTS["token_ids"], "padding_mask": np.ones((2, 5), "int32")}
    losses, texts = [], []
    for smallest in (0, 1 << 40):
        lm = load(folder, monkeypatch, smallest)
        lm.compile(optimizer=keras.optimizers.SGD(0.1), weighted_metrics=[])
        losses.append([lm.train_on_batch(x, np.roll(PROMPTS["token_ids"], -1, 1)) for _ in "12"])
        if folder[1] == "bfloat16":  # Keras rounds no float16
            lm.quantize("int8")
        texts.append(tokens(lm, 2))
    np.testing.assert_allclose(*losses, rtol=1e-2)
    assert losses[0][0] != losses[0][1]
    np.testing.assert_array_equal(*texts)
    assert hashed(folder[0]) == before


def a_kernel(lm):
    return next(x for x in lm.variables if x.path.endswith("ffw_down/kernel"))


@pytest.mark.skipif(BACKEND != "torch", reason="matrices of PyTorch")
def test_the_first_single_row_lays_matrices_out(folder, monkeypatch):
    lm = load(folder, monkeypatch, 0)
    kernel = a_kernel(lm).value
    assert kernel.mT.is_contiguous() and not kernel.is_contiguous()
    tokens(lm, 2)
    assert not kernel.is_contiguous()
    tokens(lm, 1)
    assert kernel.is_contiguous() and not kernel.is_inference()
    assert kernel is a_kernel(lm).value


@pytest.mark.skipif(BACKEND != "jax", reason="matrices of JAX")
def test_matrices_lie_as_in_the_file_from_the_beginning(folder, monkeypatch):
    from keras_rgemma.keras_internals.jax import TurnedVariable

    lm = load(folder, monkeypatch, 0)
    assert type(a_kernel(lm)) is TurnedVariable
