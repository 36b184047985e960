"""Lays weights, states and activations out over a mesh of devices, by the letters of dimensions."""
