"""What states need of PyTorch alone."""

import torch


def samples(values, strides):
    """Reads every so many numbers of each tensor.

    Args:
        values: list of tensors.
        strides: list of tuples of int, one stride an axis.

    Returns:
        List of float32 NumPy arrays [N].
    """
    flat = [
        value.detach()[tuple(slice(None, None, step) for step in steps)].reshape(-1).float()
        for value, steps in zip(values, strides, strict=True)
    ]
    if len({x.device for x in flat}) > 1:
        flat = [x.cpu() for x in flat]
    joined = torch.cat(flat).cpu()  # one copy from the device
    return [x.numpy() for x in joined.split([len(x) for x in flat])]
