"""Runs functions of a model and tensors on PyTorch; `torch.compile` may compile the decode step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from keras_rgemma.generation.model import Sampler
from keras_rgemma.generation.torch import gpu
from keras_rgemma.generation.torch.binding import (
    bind,
    bind_fused,
    bind_fused_in_place,
    bind_in_place,
)
from keras_rgemma.generation.torch.block import decode_block, with_plain_strides
from keras_rgemma.generation.torch.graphs import ReplayedStep
from keras_rgemma.generation.torch.threads import Threads
from keras_rgemma.keras_internals.torch import default_device

__all__ = ["compile_program", "compiles_slowly", "decode_block"]


def compiles_slowly() -> bool:
    """Returns False: a prompt runs uncompiled."""
    return False


def compile_program(
    function: Callable[..., Any], model: Any, sampler: Sampler | None, jit_compile: bool
) -> Callable[..., Any]:
    """Binds a function to the tensors of a model, once for all calls.

    Args:
        function: of a `generation.model.Model` and of tensors.
        model: `generation.model.GenerativeModel`. Its `run_eagerly` says whether a GPU gets each
            kernel from Python, for debugging, and not a graph of them.
        sampler: unused here.
        jit_compile: bool, whether `torch.compile` compiles the functions that write a token.

    Returns:
        The program, a function of the tensors, with an attribute `count`: a function that returns
        0, the number of compiled programs.
    """
    del sampler
    with torch.no_grad():
        device = default_device()
        whole, in_place = bind, bind_in_place
        if gpu.runs_on(device):
            whole, in_place = bind_fused, bind_fused_in_place
        # `torch.compile` fuses what it can itself.
        binding = (bind_in_place, _compiled) if jit_compile else (in_place,)
        decoding = model.bound(*binding)
        if device == "cuda" and not model.run_eagerly:
            decoding = decoding._replace(step=ReplayedStep(decoding.step, not jit_compile))
        decoding = decoding._replace(context=_context(jit_compile))
        bound = model.bound(whole)._replace(decoding=decoding)

    def run(*args: Any) -> Any:
        with torch.no_grad():
            return function(bound, *args)

    run.count = lambda: 0
    return run


def _context(jit_compile: bool) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Returns the function that returns the context in which a token is written."""
    if jit_compile:
        # Compiled functions check what they are given, which tensors of inference mode refuse; and
        # the number of threads, for each of which there would be a program.
        return torch.no_grad
    if default_device() != "cpu":
        return torch.inference_mode
    threads = Threads()

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with threads.chosen(), torch.inference_mode():
            yield

    return context


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function for each batch size."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return with_plain_strides(function(*args, **kwargs))

    # PyTorch counts the programs of a code object and stops after eight; each model has its own.
    run.__code__ = run.__code__.replace()
    return torch.compile(run, dynamic=False)
