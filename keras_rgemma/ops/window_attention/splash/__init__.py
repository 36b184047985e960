"""Holds local attention by JAX's splash attention."""
