"""Runs functions of a model and tensors on PyTorch, uncompiled."""

import torch

from keras_rgemma.generation.torch.binding import bind, bind_in_place
from keras_rgemma.generation.torch.block import decode_block

__all__ = ["compile_program", "decode_block"]


def compile_program(function, model, sampler, jit_compile):
    """Binds a function to the tensors of a model, once for all calls.

    Args:
        function: of a `generation.model.Model` and of tensors.
        model: `generation.model.GenerativeModel`.
        sampler: unused here.
        jit_compile: unused here.

    Returns:
        The program, a function of the tensors, with an attribute `count`: a function that returns
        0, the number of compiled programs.
    """
    del sampler, jit_compile
    with torch.no_grad():
        in_place = model.bound(bind_in_place).step
        bound = model.bound(bind)._replace(step_in_place=in_place)

    def run(*args):
        with torch.no_grad():
            return function(bound, *args)

    run.count = lambda: 0
    return run
