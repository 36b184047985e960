"""Benchmarks through the public API: `python -m keras_rgemma.benchmarks`."""
