"""Holds the linear recurrence as kernels in Pallas."""
