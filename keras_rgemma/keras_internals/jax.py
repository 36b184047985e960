"""Inspects compiled functions of JAX."""


def program_count(jitted):
    """Counts the compiled programs of a function of `jax.jit`, one a shape."""
    return jitted._cache_size()
