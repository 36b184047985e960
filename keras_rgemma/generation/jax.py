"""Compiles functions of a model and arrays on JAX."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import keras

from keras_rgemma.generation.decode import decode_block
from keras_rgemma.generation.model import Sampler
from keras_rgemma.keras_internals.jax import arrays_of, program_count, turn, values_of
from keras_rgemma.keras_internals.layers import layers_of, stored_variable
from keras_rgemma.layers.linear import Linear
from keras_rgemma.layers.turned import turned_arrays
from keras_rgemma.ops.jax import cuda_capability, target_platform

__all__ = ["compile_program", "compiler_options", "compiles_slowly", "decode_block"]

_LARGE = 1 << 30  # bytes of weights


def compiles_slowly() -> bool:
    """Returns whether a program of a large model takes a minute to compile, as for TPUs."""
    return target_platform() != "cpu"


def compile_program(
    function: Callable[..., Any], model: Any, sampler: Sampler | None, jit_compile: bool
) -> Callable[..., Any]:
    """Compiles a function of a model, with all weights as arguments of the program.

    Args:
        function: of the model and of arrays; it may read the variables of model and sampler.
        model: `keras.Model` whose variables are read.
        sampler: None, or `keras_hub.samplers.Sampler` whose variables (seeds) are read and
            updated.
        jit_compile: unused here; programs are always compiled.

    Returns:
        The program, with an attribute `count`: the function that counts compiled programs, one for
        each shape.
    """
    del jit_compile
    read = [*model.trainable_variables, *model.non_trainable_variables]
    updated = list(sampler.variables) if sampler else []

    matrices = _matrices_to_turn(model)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=compiler_options(model))
    def program(
        is_turned: tuple[bool, ...],
        arrays: list[jax.Array],
        seeds: list[jax.Array],
        args: tuple[Any, ...],
    ) -> tuple[Any, list[Any]]:
        turned = {id(x): y for x, y, t in zip(read, arrays, is_turned, strict=True) if t}
        values = [y.T if t else y for y, t in zip(arrays, is_turned, strict=True)]
        mapping = [*zip(read, values, strict=True), *zip(updated, seeds, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope, turned_arrays(turned):
            outputs = function(model, *args)
            return outputs, [scope.get_current_value(seed) for seed in updated]

    def run(*args: Any) -> Any:
        for matrix in matrices:
            turn(matrix)
        arrays, is_turned = arrays_of(read)
        with model.distribution_scope():
            outputs, seeds = program(is_turned, arrays, values_of(updated), args)
        for variable, seed in zip(updated, seeds, strict=True):
            variable.assign(seed)
        return outputs

    run.count = functools.partial(program_count, program)
    return run


def _matrices_to_turn(model: keras.Model) -> list[keras.Variable]:
    """Lists the matrices that are to lie with their outputs in rows, variables.

    XLA on a CPU multiplies one row by such a matrix three times as fast in half precision and int8,
    and a tenth faster in float32 (benchmarks/products.md).
    """
    if target_platform() != "cpu":
        return []
    layers = [x for x in layers_of(model) if type(x) is Linear and "call" not in vars(x)]
    kernels = [
        (stored_variable(x, "kernel"), x.compute_dtype)
        for x in layers
        if x.quantization_mode in (None, "int8")
    ]
    always = ("bfloat16", "float16", "int8")
    return [x for x, dtype in kernels if x.dtype in always or x.dtype == dtype == "float32"]


def compiler_options(model: Any) -> dict[str, str] | None:
    """Returns the options that a program needs to be fast and small, or None.

    CPUs multiply halves in float32. Without the options XLA makes a float32 copy of every weight,
    before a loop or at the start of a program. That is faster than to convert weights in each step,
    but takes more than twice the memory of the weights.

    XLA on a GPU joins matrices that are multiplied by the same rows. Without Triton, on GPUs before
    Ampere such as a T4, it writes the joint matrix anew for each token.
    """
    if (cuda_capability() or (8, 0)) < (8, 0):
        return _accepted(xla_gpu_dot_merger_threshold_mb="0")
    is_half = model.dtype_policy.variable_dtype in ("bfloat16", "float16")
    size = sum(math.prod(variable.shape) * 2 for variable in model.variables)
    is_large = is_half and size > _LARGE and target_platform() == "cpu"
    return _save_memory() if is_large else None


def _save_memory() -> dict[str, str] | None:
    return _accepted(
        xla_disable_hlo_passes="while-loop-invariant-code-motion",
        xla_cpu_scheduler_type="CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    )


@functools.cache
def _accepted(**options: str) -> dict[str, str] | None:
    """Returns options of the compiler, or None if this version of XLA does not have them."""
    try:
        jax.jit(lambda x: x, compiler_options=options)(0.0)
    except Exception:
        return None
    return options
