"""The plain linear layers of the blocks."""

import keras


def linear(units, fan_in, name, dtype=None, variance=1.0, use_bias=True):
    """A `Dense` layer whose kernel starts normal with variance `variance / fan_in`.

    Args:
        units: int, the output width.
        fan_in: int, what the reference counts as inputs.
        name: str.
        dtype: of the layer.
        variance: float, 2 / num_layers for the projections back into the residual stream.
        use_bias: bool.
    """
    return keras.layers.Dense(
        units,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.RandomNormal(stddev=(variance / fan_in) ** 0.5),
        name=name,
        dtype=dtype,
    )
