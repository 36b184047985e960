"""Generates text with any model that has a step and a state; knows no architecture."""
