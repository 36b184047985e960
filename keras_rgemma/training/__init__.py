"""Extends training: the optimizer for these models, and learning from long documents."""
