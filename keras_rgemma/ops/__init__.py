"""Functions without weights."""
