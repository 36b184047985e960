"""Computes the linear recurrence `h_t = a_t * h_{t-1} + x_t` with the chosen implementation."""

from keras import ops

from keras_rgemma.backend import resolve
from keras_rgemma.types import Tensor


def linear_recurrence(
    x: Tensor, a: Tensor, initial_state: Tensor | None = None, *, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Computes `h_t = a_t * h_{t-1} + x_t` over time, elementwise in B and L.

    Griffin (arXiv 2402.19427), section 2.4, equation 4, after gating. Accumulates in float32
    whatever the dtype of the inputs. The gradient is another recurrence that runs backwards,
    `g_t = dh_t + a_{t+1} * g_{t+1}`, with `dx_t = g_t` and `da_t = g_t * h_{t-1}`, not the
    derivative of a loop. A step with `a = 1, x = 0` keeps the state; `a = 0` forgets the state.

    Args:
        x: float [B, T, L], T >= 1.
        a: float [B, T, L].
        initial_state: float [B, L], h before the first step. None: zeros.
        implementation: "auto" for the choice of `keras_rgemma.implementation`, or the name of one
            of this backend's implementations (on JAX "loop", "associative", on TPUs "pallas", on
            CUDA "triton" or "by_device", which is "associative" elsewhere; "chunked" on TensorFlow
            and PyTorch, and "triton" on PyTorch with CUDA).

    Returns:
        A pair of float32 arrays: h [B, T, L] and its last step [B, L].

    Raises:
        ValueError: the backend, or the implementation on this backend, does not exist, or it was
            chosen by name and cannot run on the device.

    Example:
    ```python
    h, last = linear_recurrence(x=np.ones((1, 3, 1)), a=np.full((1, 3, 1), 0.5))
    # h = [[[1.0], [1.5], [1.75]]], last = [[1.75]]
    ```
    """
    function = resolve("linear_recurrence", implementation)
    # Not cast here: a kernel reads half precision as it is.
    x, a = ops.convert_to_tensor(x), ops.convert_to_tensor(a)
    if initial_state is None:
        initial_state = ops.zeros_like(x[:, 0], dtype="float32")
    return function(x, a, ops.cast(initial_state, "float32"))
