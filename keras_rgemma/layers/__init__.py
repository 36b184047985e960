"""Defines the layers of the model: thin shells that own weights around pure functions."""
