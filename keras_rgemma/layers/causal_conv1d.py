"""Depthwise causal convolution that never reads across a document's beginning."""

import keras
from keras import ops

from keras_rgemma.ops.documents import last_token


@keras.saving.register_keras_serializable(package="keras_rgemma")
class CausalConv1D(keras.layers.Layer):
    """Mixes each feature with its own last values: the temporal convolution of Griffin.

    `y_t = bias + sum_s kernel[width - 1 - s] * x_{t-s}` over s = 0 .. width - 1, as far back as
    the document goes. Griffin (arXiv 2402.19427), section 2.3.

    Args:
        width: int, the number of taps.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, L].
        positions: int32 [B, T], the place of each token in its document, -1 at pads.
        state: None, or float [B, width - 1, L]: the inputs before x, oldest first.
        return_state: bool.

    Returns:
        float [B, T, L], or with `return_state` a pair of it and the new state.
    """

    def __init__(self, width=4, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.width = width

    def build(self, input_shape):
        channels = input_shape[-1]
        # Flax's variance scaling with scale 0.01 and the taps as fan-in.
        initializer = keras.initializers.RandomNormal(stddev=(0.01 / self.width) ** 0.5)
        self.kernel = self.add_weight(
            name="kernel", shape=(self.width, channels), initializer=initializer
        )
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")
        self.built = True

    def call(self, x, positions, state=None, return_state=False):
        return causal_conv1d(x, self.kernel, self.bias, positions, state, return_state)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def causal_conv1d(x, kernel, bias, positions, state=None, return_state=False):
    """The function of `CausalConv1D`, with kernel [width, L] and bias [L]."""
    reach = kernel.shape[0] - 1
    length = ops.shape(x)[1]
    if state is None:
        padded = ops.pad(x, ((0, 0), (reach, 0), (0, 0)))
    else:
        padded = ops.concatenate([ops.cast(state, x.dtype), x], axis=1)
    kernel, bias = ops.cast(kernel, x.dtype), ops.cast(bias, x.dtype)
    y = bias + x * kernel[reach]
    for shift in range(1, reach + 1):
        shifted = padded[:, reach - shift : reach - shift + length]
        same_document = ops.cast(positions >= shift, x.dtype)[:, :, None]
        y = y + shifted * same_document * kernel[reach - shift]
    if not return_state:
        return y
    return y, _final_state(padded, positions, reach)


def _final_state(padded, positions, reach):
    """The last `reach` inputs of the row's last document, zeros where it is shorter."""
    last_B, length_B = last_token(positions)
    back_R = ops.arange(reach, dtype="int32")
    # Index last + 1 + i of the padded row is `reach - 1 - i` tokens before the last one.
    recent = ops.take_along_axis(padded, (last_B[:, None] + 1 + back_R)[:, :, None], axis=1)
    known = length_B[:, None] >= reach - back_R
    # A row without a token keeps the state it came with, which is what the indices point to.
    known = ops.logical_or(known, last_B[:, None] < 0)
    return ops.where(known[:, :, None], recent, ops.zeros_like(recent))
