"""Measures speed and memory through the public API: `keras-rgemma bench`."""
