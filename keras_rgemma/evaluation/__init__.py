"""Evaluates models on tasks of EleutherAI's evaluation harness."""
