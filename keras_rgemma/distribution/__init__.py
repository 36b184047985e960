"""Looks at the programs of a model on several devices."""
