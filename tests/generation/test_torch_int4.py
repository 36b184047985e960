"""Products with matrices in int4 that PyTorch decodes with are those of the layers."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("products of PyTorch's decode step", allow_module_level=True)

import torch

from keras_rgemma.generation.torch import int4

# Shapes, columns of the matrix as Keras rounds it, and rows that share scales.
MATRICES = [
    ((24, 10), 10, 8),
    ((24, 10), 10, 24),
    ((24, 14), 14, 3),
    ((25, 6), 6, 8),  # the last group has one row
    ((3, 8, 4), 12, 8),
    ((3, 8, 4), 12, 2),
    ((3, 8, 4), 4, 4),
    ((3, 8, 4), 6, 16),  # the bags of its blocks differ
    ((2, 5, 6), 12, 5),
]


def matrix(shape, width, size):
    """Random numbers in int4, packed, with scales and zeros; and the matrix in float64."""
    random = np.random.default_rng(0)
    rows = int(np.prod(shape)) // width
    numbers = random.integers(-8, 8, (rows, width)).astype("int8")
    groups = -(-rows // size)
    scale = random.uniform(0.01, 0.02, (groups, width)).astype("float32")
    zero = random.integers(-8, 8, (groups, width)).astype("int8")
    packed = (numbers[:, 0::2] & 15) | (numbers[:, 1::2] << 4)
    of_row = np.arange(rows) // size
    floats = (numbers - zero[of_row].astype("float64")) * scale[of_row]
    return [torch.tensor(x) for x in (packed, scale, zero)], floats.reshape(shape)


def inputs(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def close(found, expected):
    np.testing.assert_allclose(found.float().numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("shape, width, size", MATRICES)
@pytest.mark.parametrize("bytes_at_once", [1 << 20, 64])
def test_products(shape, width, size, rows, bytes_at_once, monkeypatch):
    monkeypatch.setattr(int4, "_BYTES", bytes_at_once)
    int4._plan.cache_clear()
    arrays, floats = matrix(shape, width, size)
    product = int4.int4_map(*arrays, size, shape, torch.float32)
    x = inputs(*shape[:-2], rows, shape[-2])
    # A first token may be read with gradients off, and the next written in inference mode.
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            close(product(torch.tensor(x)), x @ floats)
    int4._plan.cache_clear()


def test_products_see_weights_that_change():
    (packed, scale, zero), floats = matrix((24, 10), 10, 8)
    product = int4.int4_map(packed, scale, zero, 8, (24, 10), torch.float32)
    x = inputs(1, 1, 24)
    with torch.inference_mode():
        close(product(torch.tensor(x)), x @ floats)
    scale *= 2
    with torch.inference_mode():
        close(product(torch.tensor(x)), x @ (2 * floats))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3, 7])
@pytest.mark.parametrize("bytes_at_once", [1 << 20, 64])
def test_logits(groups, rows, bytes_at_once, monkeypatch):
    monkeypatch.setattr(int4, "_LOGIT_BYTES", bytes_at_once)
    monkeypatch.setattr(int4, "_ELEMENTS", bytes_at_once)
    arrays, floats = matrix((6 * groups, 50), 50, 6)
    numbers = np.round(floats / arrays[1].repeat_interleave(6, 0).numpy())
    zero = arrays[2].repeat_interleave(6, 0).numpy()
    numbers = (numbers + zero).astype("int8").T
    packed = torch.tensor((numbers[:, 0::2] & 15) | (numbers[:, 1::2] << 4))
    scale, zero = (x.mT.contiguous() for x in arrays[1:])
    x = inputs(rows, 1, 6 * groups)
    with torch.inference_mode():
        close(int4.int4_logits(torch.tensor(x), packed, scale, zero), x @ floats)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_inputs_of_any_size(value):
    arrays, floats = matrix((24, 10), 10, 8)
    product = int4.int4_map(*arrays, 8, (24, 10), torch.float32)
    x = np.full((1, 24), value, "float32")
    with torch.inference_mode():
        np.testing.assert_allclose(product(torch.tensor(x)), x @ floats, rtol=1e-5)
        embedding = torch.full((5, 12), 0x11, dtype=torch.int8)  # of ones
        logits = int4.int4_logits(
            torch.tensor(x), embedding, torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.int8)
        )
        np.testing.assert_allclose(logits, np.full((1, 5), 24 * np.float64(value)), rtol=1e-5)


def test_what_is_not_finite_shows():
    arrays, _ = matrix((24, 10), 10, 8)
    x = torch.full((1, 24), float("nan"))
    with torch.inference_mode():
        assert int4.int4_map(*arrays, 8, (24, 10), torch.float32)(x).isnan().all()
        packed, scale, zero = (y.mT.contiguous() for y in matrix((24, 24), 24, 8)[0])
        assert int4.int4_logits(x, packed.mT.contiguous(), scale, zero).isnan().all()
