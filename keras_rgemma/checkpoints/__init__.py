"""Weights in the formats of others: Hugging Face, DeepMind's Flax tree, DeepMind's torch file."""
