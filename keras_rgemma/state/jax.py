"""Registers a class as a pytree of JAX."""

import jax


def register_pytree(cls):
    """Tells JAX to look into a class with `tree_flatten` and `tree_unflatten`."""
    jax.tree_util.register_pytree_node_class(cls)
