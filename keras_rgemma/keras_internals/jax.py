"""Compiled functions of JAX."""


def program_count(jitted):
    """The number of programs that a function of `jax.jit` was compiled to, one a shape."""
    return jitted._cache_size()
