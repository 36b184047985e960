"""Rows of arrays that plain Python makes inside of a graph."""
