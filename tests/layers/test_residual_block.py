"""A residual block adds its two sublayers, and works on x alone."""

import keras
import numpy as np
import pytest
from keras import ops

from compiled import compiled, to_numpy
from keras_rgemma.layers.residual_block import ResidualBlock

DIM, LENGTH = 6, 9
TEMPORAL = {
    "recurrent": {"lru_dim": 8, "num_blocks": 2},
    "attention": {
        "num_query_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "sliding_window_size": 5,
        "rope_max_wavelength": 10_000,
        "rotated_size": 2,
    },
}

both_types = pytest.mark.parametrize("block_type", TEMPORAL)


def random_block(block_type, **kwargs):
    block = ResidualBlock(block_type, TEMPORAL[block_type], {"intermediate_dim": 10}, **kwargs)
    block.build((None, None, DIM))
    random = np.random.default_rng(0)
    block.set_weights([random.normal(size=w.shape, scale=0.5) for w in block.weights])
    return block


def sample():
    return np.random.default_rng(1).normal(size=(2, LENGTH, DIM)).astype("float32")


def row_of_one_document():
    return np.tile(np.arange(LENGTH, dtype="int32"), (2, 1))


@both_types
def test_x_alone_is_one_document_a_row(block_type):
    program = compiled(random_block(block_type))
    x = sample()
    # The same program but for where the positions come from.
    np.testing.assert_allclose(program(x), program(x, row_of_one_document()), rtol=1e-6, atol=1e-6)
    assert np.abs(program(x, row_of_one_document() % 4) - program(x)).max() > 1e-3


@both_types
def test_it_adds_the_outputs_of_its_sublayers(block_type):
    block = random_block(block_type)

    def by_hand(x, positions):
        x = x + block.temporal_block(block.temporal_pre_norm(x), positions)
        mlp, normed = block.mlp_block, block.channel_pre_norm(x)
        # The tanh formula of the Gaussian error linear unit.
        gate = mlp.ffw_gate(normed)
        inner = np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)
        return x + mlp.ffw_down(0.5 * gate * (1.0 + ops.tanh(inner)) * mlp.ffw_up(normed))

    args = sample(), row_of_one_document()
    # float32: the same sums in another order.
    np.testing.assert_allclose(
        compiled(block)(*args), compiled(by_hand)(*args), rtol=1e-5, atol=1e-5
    )


@both_types
def test_a_symbolic_call_knows_its_shape_and_dtype(block_type):
    block = random_block(block_type, dtype="mixed_bfloat16")
    out = block(keras.KerasTensor((None, None, DIM), "bfloat16"))
    assert out.shape == (None, None, DIM)
    assert out.dtype == "bfloat16"


@both_types
def test_its_config_makes_the_same_block(block_type):
    block = random_block(block_type, layer_norm_epsilon=0.3, dropout=0.25)
    copy = ResidualBlock.from_config(block.get_config())
    copy.build((None, None, DIM))
    copy.set_weights(block.get_weights())
    assert copy.get_config() == block.get_config()
    x = sample()
    np.testing.assert_array_equal(compiled(copy)(x), compiled(block)(x))


def test_dropout_drops_in_training_only():
    block, x = random_block("recurrent", dropout=0.5), sample()
    without = random_block("recurrent")
    np.testing.assert_array_equal(to_numpy(block(x)), to_numpy(without(x)))
    trained = to_numpy(block(x, training=True))
    assert np.abs(trained - to_numpy(block(x))).max() > 0.1
    assert np.abs(to_numpy(block(x, training=True)) - trained).max() > 0.1
