"""Defines root-mean-square normalisation."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.recomputed import RecomputedInShape
from keras_rgemma.types import Bind, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RMSNorm(RecomputedInShape, keras.layers.Layer):
    """Divides x by the root of its mean square and multiplies by `1 + scale`.

    `x * rsqrt(mean(x^2) + epsilon) * (1 + scale)`, in float32 whatever the compute dtype; `scale`
    starts at zero. Zhang & Sennrich, arXiv 1910.07467, equation 4.

    Args:
        epsilon: float, added to the mean square.
        **kwargs: of `keras.layers.Layer`, such as `dtype` and `name`.

    Call arguments:
        x: float [..., D].

    Returns:
        float [..., D], in the compute dtype.

    Example:
    ```python
    RMSNorm()(np.array([[3.0, 4.0]]))  # [[0.8485, 1.1314]]
    ```
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        # Without autocast, here and below, `scale` keeps its dtype: half precision would round it
        # away in `1 + scale`.
        super().__init__(autocast=False, **kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: Shape) -> None:
        self.scale = self.add_weight(
            name="scale", shape=(input_shape[-1],), initializer="zeros", autocast=False
        )
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        return self.bound(unchanged)(x)

    def bound(self, bind: Bind) -> Callable[[Tensor], Tensor]:
        """Returns the function of this layer with bound parts, see `binding.unchanged`."""
        return functools.partial(bind(rms_norm), scale=bind(self.scale), epsilon=self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """Computes `RMSNorm` of x [..., D] with scale [D], in the dtype of x."""
    # Keras computes in float32 and rounds once, at the end.
    scale_D = 1.0 + ops.cast(scale, "float32")
    return ops.rms_normalization(x, scale_D, axis=-1, epsilon=epsilon)
