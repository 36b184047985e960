"""The block-diagonal layer is a product with a block-diagonal matrix."""

import numpy as np
import pytest
from keras import ops

from compiled import to_numpy
from keras_rgemma.layers.block_diagonal import block_diagonal_dense, from_blocks, to_blocks


@pytest.mark.parametrize("width, num_blocks", [(12, 4), (15, 3), (5, 1), (4, 4)])
def test_it_is_the_dense_block_diagonal_matrix(width, num_blocks):
    random = np.random.default_rng(width)
    x = random.normal(size=(2, 3, width)).astype("float32")
    layer = block_diagonal_dense(width, num_blocks, "gate")
    blocks = to_blocks(ops.convert_to_tensor(x), num_blocks)
    layer.build(blocks.shape)
    kernel, bias = (random.normal(size=w.shape).astype("float32") for w in layer.weights)
    layer.set_weights([kernel, bias])

    size = width // num_blocks
    matrix = np.zeros((width, width))
    for block in range(num_blocks):
        own = slice(block * size, (block + 1) * size)
        matrix[own, own] = kernel[block]
    # float32: sums of at most five products of magnitude 1.
    truth = x @ matrix + bias.reshape(width)
    np.testing.assert_allclose(to_numpy(from_blocks(layer(blocks))), truth, atol=5e-6)


def test_blocks_are_neighbouring_features_and_can_be_undone():
    x = np.arange(2 * 3 * 10, dtype="float32").reshape(2, 3, 10)
    blocks = to_blocks(ops.convert_to_tensor(x), 5)
    assert tuple(blocks.shape) == (5, 2, 3, 2)
    np.testing.assert_array_equal(to_numpy(blocks)[3], x[:, :, 6:8])
    np.testing.assert_array_equal(to_numpy(from_blocks(blocks)), x)
