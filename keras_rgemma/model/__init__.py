"""Defines the public model: backbone, tokenizer, preprocessor, causal language model."""
