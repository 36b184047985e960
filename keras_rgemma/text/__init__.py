"""Turns text into rows of tokens: examples, conversations, packing, and literal spaces."""
