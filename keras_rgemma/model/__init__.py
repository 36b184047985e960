"""The public model: backbone, tokenizer, preprocessor, causal language model, presets."""
