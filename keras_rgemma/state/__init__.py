"""Holds the memory of a model: records of arrays, the public `RGemmaState`, and its file."""
