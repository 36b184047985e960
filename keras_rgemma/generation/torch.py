"""How a function of tensors runs without the bookkeeping of gradients on PyTorch."""

import torch


def compile_program(function, model, sampler, jit_compile):
    """Wraps `function`; nothing is compiled."""
    del model, sampler, jit_compile

    def run(*args):
        with torch.no_grad():
            return function(*args)

    run.count = lambda: 0
    return run
