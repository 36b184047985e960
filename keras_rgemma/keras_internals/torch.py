"""Shows the variables of a Keras model to PyTorch, and reaches PyTorch's count of changes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import keras
import torch
from keras.src.backend.torch.core import get_device
from torch.utils._python_dispatch import TorchDispatchMode


class ParametersOfVariables:
    """Mixin for a model of KerasHub whose parameters are the values of its variables.

    List it before KerasHub's class. KerasHub sets attributes around `torch.nn.Module`, which then
    knows no parameter. Keras collects parameters once, when a model is built; these here are
    collected anew each time that PyTorch asks, so that LoRA and quantization show.
    """

    def _post_build(self) -> None:
        self._track_variables()

    def _track_variables(self) -> None:
        self._modules["_torch_params"] = _Parameters(self)

    def _post_track_variable(self, variable: keras.Variable) -> None:
        pass

    def _post_untrack_variable(self, variable: keras.Variable) -> None:
        pass

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        for dtype in {variable.value.dtype for variable in self.variables}:
            _check_conversion(fn, torch.zeros((), dtype=dtype))
        return super()._apply(fn, recurse)


class _Parameters(torch.nn.Module):
    """Lists the values of a model's variables as parameters, each by the path of its variable."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.named_values = lambda: _named_values(model)

    @property
    def _parameters(self) -> dict[str, torch.Tensor]:
        return self.named_values()

    @_parameters.setter
    def _parameters(self, value: Any) -> None:
        pass  # the empty dict of `torch.nn.Module`

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # Values are copied, with `assign=True`, too: variables keep their tensors.
        local_metadata.pop("assign_to_params_buffers", None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _named_values(model: keras.Model) -> dict[str, torch.Tensor]:
    """Maps the paths of a model's variables to their tensors; the same path twice gets a number."""
    named = {}
    for variable in model.variables:
        name, count = variable.path, 1
        while name in named:
            count += 1
            name = f"{variable.path}_{count}"
        named[name] = variable.value
    return named


def _check_conversion(fn: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> None:
    """Raises ValueError if `fn` gives a tensor another dtype, or a device that is not Keras' own.

    Args:
        fn: function of a tensor, with which `torch.nn.Module.to` and others convert parameters.
        tensor: tensor to try it with, on any device.
    """
    tensor = keras.ops.convert_to_tensor(tensor)
    converted = fn(tensor)
    if converted.dtype != tensor.dtype:
        raise ValueError(
            f"Keras keeps the dtype of each layer. Received: {converted.dtype} for "
            f"{tensor.dtype}. Load the model in that dtype, as with "
            "`from_preset(..., dtype='bfloat16')`, instead of converting it by `to`, `half`, "
            "`bfloat16`, `float` or `double`."
        )
    if converted.device != tensor.device:
        raise ValueError(
            f"Keras computes on {str(tensor.device)!r}. Received: {str(converted.device)!r}. Set "
            "the environment variable KERAS_TORCH_DEVICE before the first import of keras, or load "
            "and use the model inside `with keras.device(...)`."
        )


def change_count(tensor: torch.Tensor) -> int | None:
    """Returns how often a tensor was changed in place, int; None if PyTorch does not count."""
    return None if tensor.is_inference() else tensor._version


class WithoutHost(TorchDispatchMode):
    """Raises RuntimeError inside of a `with` block where a GPU would wait for the host.

    A CUDA graph cannot hold such an operation, and PyTorch may not recover from the attempt.
    """

    _READING = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select")
    _MAKING = ("lift_fresh",)

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = function.name().removeprefix("aten::").split(".")[0]
        tensors = [x for x in keras.tree.flatten(args) if isinstance(x, torch.Tensor)]
        is_mask = name == "index" and any(x.dtype == torch.bool for x in tensors[1:])
        if name in self._READING or is_mask:
            raise RuntimeError(f"{name} reads numbers of a tensor.")
        if name in self._MAKING:
            raise RuntimeError(f"{name} makes a tensor of numbers.")
        result = function(*args, **(kwargs or {}))
        involved = [*keras.tree.flatten(result), *tensors[:1]]
        devices = {x.device.type for x in involved if isinstance(x, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{name} copies a tensor between devices.")
        return result


def default_device() -> str:
    """Returns the type of the device on which Keras computes, such as "cpu" or "cuda"."""
    return get_device().split(":")[0]


def int_mm(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Multiplies int8 [M, I] by int8 [I, J] on a CPU; returns int32 [M, J]."""
    if torch.compiler.is_compiling() and len(x) == 1:
        # `torch.compile` (2.13) gives a single row the stride 0, and the product is wrong then.
        return torch._int_mm(torch.nn.functional.pad(x, (0, 0, 0, 1)), kernel)[:1]
    return torch._int_mm(x, kernel)


def onednn_product(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiplies float32 [M, I] by [I, J] on a CPU with oneDNN, not MKL; it has no gradient.

    Args:
        x, kernel, bias: float32 tensors of any strides; the bias, [J], may be None.
    """
    # oneDNN does not heed the strides of a bias.
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, kernel.mT, bias, "none", [], "")


no_gradients = torch.no_grad


@contextlib.contextmanager
def normal_tensors() -> Iterator[None]:
    """Creates tensors in a `with` block that can take part in a gradient later.

    In `torch.inference_mode` the variables of a model could never be trained. Also a decorator.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
