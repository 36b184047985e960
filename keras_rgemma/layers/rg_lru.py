"""The real-gated linear recurrent unit."""

import keras
from keras import ops

from keras_rgemma.layers.block_diagonal import block_diagonal_dense, from_blocks, to_blocks
from keras_rgemma.ops.bounded_sqrt import bounded_sqrt
from keras_rgemma.ops.linear_recurrence import linear_recurrence

MIN_RADIUS, MAX_RADIUS = 0.9, 0.999
DECAY_SCALE = 8.0  # the paper's c


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RecurrenceInitializer(keras.initializers.Initializer):
    """Draws `a_param` so that the squared radius is uniform in [0.9^2, 0.999^2].

    Stored as `log(exp(-log radius) - 1)`, so that `softplus(a_param)` is `-log radius`. Griffin
    (arXiv 2402.19427), section 2.4.
    """

    def __init__(self, seed=None):
        self._uniform = keras.initializers.RandomUniform(MIN_RADIUS**2, MAX_RADIUS**2, seed=seed)

    def __call__(self, shape, dtype=None):
        square = self._uniform(shape, dtype="float32")
        return ops.cast(ops.log(ops.expm1(-0.5 * ops.log(square))), dtype or "float32")

    def get_config(self):
        return {"seed": self._uniform.get_config()["seed"]}


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGLRU(keras.layers.Layer):
    """The recurrence of Griffin: gated input, gated decay, one multiplication a step.

    ```
    i = sigmoid(input_gate(x));  r = sigmoid(a_gate(x))
    log a = -8 * r * softplus(a_param)
    h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t
    ```
    At the first token of a document `h_{t-1}` counts as zero and the root as 1. Griffin (arXiv
    2402.19427), section 2.4, equations 1 to 4.

    Args:
        num_blocks: int, H, the blocks of the gates.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, L].
        positions: int32 [B, T], the place of each token in its document, -1 at pads.
        state: None, or float32 [B, L], h before the first token.
        return_state: bool.

    Returns:
        h in the compute dtype [B, T, L], or with `return_state` a pair of it and float32 [B, L].
    """

    def __init__(self, num_blocks, **kwargs):
        # Without autocast, here and of `a_param`, both it and the state keep float32 in mixed
        # precision: a decay near 1 does not survive half precision.
        super().__init__(autocast=False, **kwargs)
        self.num_blocks = num_blocks

    def build(self, input_shape):
        batch, time, width = input_shape
        self.input_gate = block_diagonal_dense(
            width, self.num_blocks, "input_gate", self.dtype_policy
        )
        self.a_gate = block_diagonal_dense(width, self.num_blocks, "a_gate", self.dtype_policy)
        for gate in (self.input_gate, self.a_gate):
            gate.build((self.num_blocks, batch, time, width // self.num_blocks))
        self.a_param = self.add_weight(
            name="a_param", shape=(width,), initializer=RecurrenceInitializer(), autocast=False
        )
        self.built = True

    def call(self, x, positions, state=None, return_state=False):
        return rg_lru(
            x,
            self.input_gate,
            self.a_gate,
            self.a_param,
            self.num_blocks,
            positions,
            state,
            return_state,
        )

    def get_config(self):
        return {**super().get_config(), "num_blocks": self.num_blocks}


def rg_lru(x, input_gate, a_gate, a_param, num_blocks, positions, state=None, return_state=False):
    """The function of `RGLRU`. The gates are callables on head-major arrays [H, B, T, L / H]."""
    heads = to_blocks(x, num_blocks)
    gated_input = ops.sigmoid(from_blocks(input_gate(heads))) * x
    decay_gate = ops.cast(ops.sigmoid(from_blocks(a_gate(heads))), "float32")
    log_a = -DECAY_SCALE * decay_gate * ops.softplus(ops.cast(a_param, "float32"))
    a = ops.exp(log_a)
    # 1 - a^2, without the cancellation that would cost half the digits as a goes to 1.
    multiplier = bounded_sqrt(-ops.expm1(2.0 * log_a))
    first = (positions == 0)[:, :, None]
    token = (positions >= 0)[:, :, None]
    normed = ops.where(first, 1.0, multiplier) * ops.cast(gated_input, "float32")
    # The first token forgets what was before it; a pad changes nothing.
    a = ops.where(token, ops.where(first, 0.0, a), 1.0)
    normed = ops.where(token, normed, 0.0)
    h, last = linear_recurrence(normed, a, state)
    h = ops.cast(h, x.dtype)
    return (h, last) if return_state else h
