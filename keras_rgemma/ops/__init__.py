"""Computes on arrays, without weights."""
