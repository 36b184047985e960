"""Sizes at which kernels of the linear recurrence are measured, their bytes and their table."""

SIZES = {"110m": (8, 2048, 768), "2b": (1, 8192, 2560), "9b": (4, 4096, 4096)}  # B, T, L
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Arrays [B, T, L] of float32, arrays [B, T, L] of the dtype of x and a, arrays [B, L] of float32.
ARRAYS = {"forward": (1, 2, 2), "gradient": (2, 3, 3)}


def floor(direction, dtype, length):
    """Computes the bytes an element that every program reads and writes at least."""
    of_float32, of_dtype, states = ARRAYS[direction]
    return 4 * of_float32 + BYTES[dtype] * of_dtype + 4 * states / length


def table(measured):
    """Returns the lines of a table in Markdown.

    Args:
        measured: list of dicts of `implementation`, `size`, `dtype`, and of each direction the
            milliseconds and the share of the bandwidth of a copy.
    """
    lines = [
        "| implementation | size | x and a | forward, ms | share | gradient, ms | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for x in measured:
        cells = [x["implementation"], x["size"], x["dtype"]]
        for direction in ARRAYS:
            cells += [f"{x[direction + '_ms']:.3f}", f"{100 * x[direction + '_share']:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
