"""Lays the matrices of a model out in memory for the products of single rows on a CPU."""

import torch


def is_turned_half(matrix: torch.Tensor) -> bool:
    """Returns whether a matrix [I, J] of half precision on a CPU lies in memory as [J, I].

    So it lies in the files of Hugging Face, which a model on a CPU reads its matrices from.
    """
    is_half = matrix.dtype in (torch.bfloat16, torch.float16)
    return is_half and matrix.device.type == "cpu" and not matrix.is_contiguous()


def put_in_rows(matrix: torch.Tensor) -> None:
    """Stores a matrix [I, J] as it is written, for good, unless it lies so.

    A single row is multiplied faster then, several rows more slowly (benchmarks/products_torch.md).
    So this waits for the first of the single rows, and loading takes no time for it.
    """
    if not matrix.is_contiguous():
        with torch.inference_mode(False), torch.no_grad():
            matrix.data = matrix.contiguous()
