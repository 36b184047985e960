"""Counts the processes of `torch.distributed`."""

import os

import torch


def process_count() -> int:
    """Returns the number of processes that were started together, int, by `torchrun` too."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))
