"""Keeps programs with kernels to the devices that the kernels are made for."""

import functools

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


@functools.partial(jax.jit, static_argnums=(1, 2))
def only_on_tpus(x, operation, implementation):
    """Returns x; in a program for another device this is an error, with what to do instead.

    No gradient goes through it. A program knows its device when it is lowered, not before.

    Args:
        x: array.
        operation, implementation: str, their names.
    """
    return _only_on_tpus.bind(x, operation=operation, implementation=implementation)


_only_on_tpus = Primitive("only_on_tpus")
_only_on_tpus.def_abstract_eval(lambda x, **_: x)
batching.defvectorized(_only_on_tpus)


def _refuse(context, x, operation, implementation):
    raise ValueError(
        f"The implementation {implementation!r} of {operation!r} runs on TPUs. Received: a program "
        f"for {context.module_context.platforms}. Choose 'auto' there. Tests run it on any device: "
        f"its function in keras_rgemma.ops.{operation}.jax.{implementation} takes `interpret`."
    )


mlir.register_lowering(_only_on_tpus, _refuse)
mlir.register_lowering(_only_on_tpus, lambda _, x, **__: [x], platform="tpu")
