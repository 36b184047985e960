"""Makes operations of JAX out of functions that call TPU kernels."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir


def operation(function, sharding_rule):
    """Returns `function` as an operation that can be sharded, and mapped by `jax.vmap`.

    XLA cannot look into a kernel. Left alone, it would gather the arrays on every device.

    Args:
        function: function of `options`, a tuple that begins with `interpret`, and of arrays, all
            of which begin with a batch axis. Returns a list of such arrays.
        sharding_rule: str, the axes of the arrays and results in Shardy's notation. All may be
            sharded but "t".
    """
    make = functools.cache(functools.partial(_operation, function, sharding_rule))
    return lambda options, *arrays: make(options)(*arrays)


def _operation(function, sharding_rule, options):
    interpret = options[0]

    def on_one_device(*arrays):
        if not interpret:
            arrays = (_only_on_tpus.bind(arrays[0]), *arrays[1:])
        return function(options, *arrays)

    def partition(mesh, arrays, results):
        shardings = lambda trees: jax.tree.map(lambda x: x.sharding, trees)  # noqa: E731
        return mesh, on_one_device, shardings(results), shardings(arrays)

    on_devices = custom_partitioning(on_one_device)
    on_devices.def_partition(
        partition=partition, sharding_rule=sharding_rule, need_replication_factors=("t",)
    )

    @custom_vmap
    def run(*arrays):
        return on_devices(*arrays)

    @run.def_vmap
    def run_mapped(size, is_mapped, *arrays):
        arrays = [
            x if mapped else jnp.broadcast_to(x, (size, *x.shape))
            for x, mapped in zip(arrays, is_mapped, strict=True)
        ]
        batch = arrays[0].shape[1]
        results = run(*(x.reshape(size * batch, *x.shape[2:]) for x in arrays))
        results = [x.reshape(size, batch, *x.shape[1:]) for x in results]
        return results, [True] * len(results)

    return jax.jit(run)


# The identity, which only lowers for TPUs: the device is not known before.
_only_on_tpus = Primitive("only_on_tpus")
_only_on_tpus.def_abstract_eval(lambda x: x)
mlir.register_lowering(_only_on_tpus, lambda _, x: [x], platform="tpu")


def _refuse(context, x):
    platforms = context.module_context.platforms
    raise ValueError(
        "The implementation 'pallas' of 'linear_recurrence' runs on TPUs. Received: a program for "
        f"{platforms}. Choose 'auto' there. Tests run the kernels on any device by "
        "keras_rgemma.ops.linear_recurrence.pallas.jax.linear_recurrence(..., interpret=True)."
    )


mlir.register_lowering(_only_on_tpus, _refuse)
