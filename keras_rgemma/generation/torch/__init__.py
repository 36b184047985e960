"""Runs functions of a model and tensors on PyTorch, where nothing is compiled."""

import torch

from keras_rgemma.generation.torch.binding import bind, bind_in_place
from keras_rgemma.generation.torch.block import decode_block

__all__ = ["compile_program", "decode_block"]


def compile_program(function, model, sampler, jit_compile):
    """Runs `function` on the model's tensors, which are bound once.

    Args:
        function: of a `generation.model.Model` and of tensors.
        model: `generation.model.GenerativeModel`.
        sampler: unused here.
        jit_compile: unused here.

    Returns:
        The program, a function of the tensors, with an attribute `count`: that of compiled
        programs, which is 0.
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
