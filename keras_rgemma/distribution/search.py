"""Looks for the largest programs that fit: a line through two, and another at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keras_rgemma.distribution.report import Program
from keras_rgemma.distribution.settings import Settings

STEP = 128  # lengths are multiples of it
MOST_TOKENS, MOST_ROWS = 1 << 20, 1 << 12
_TRIES = 2  # programs at the end of the line; the second one where the first does not fit


def largest_length(
    settings: Settings, memory: int, first: Program, compiled: Callable[[str, int, int], Program]
) -> tuple[int | None, int | None, bool]:
    """Finds the most tokens of a row, and from the same line the most rows.

    Args:
        settings: `settings.Settings` of a task that trains.
        memory: int, bytes of a chip.
        first: `report.Program` of the batch and the length that were asked for.
        compiled: function of a name, rows and tokens that returns a `report.Program`.

    Returns:
        A triple: tokens or None, rows or None, and whether a program of that many tokens was
        compiled and fits.
    """
    batch, length, data = settings.batch, settings.length, settings.mesh[0]
    other = _up(length // 2, STEP) if length >= 2 * STEP else 2 * length
    second = compiled("train", batch, other)
    line = _line((length, first.total_bytes), (other, second.total_bytes))
    if line is None:
        return None, None, False
    rows = _end(line, memory, length / batch) // data * data
    rows = max(min(rows, MOST_ROWS), batch if first.fits else 0)

    def program(tokens: int) -> Program:
        return first if tokens == length else compiled("train", batch, tokens)

    known = [(x.tokens, x.total_bytes) for x in (first, second)]
    fitting = [x.tokens for x in (first, second) if x.fits]
    tokens, is_sure = _verified(known, fitting, memory, STEP, MOST_TOKENS, program)
    return tokens, rows or None, is_sure


def largest_batch(
    settings: Settings, memory: int, first: Program, compiled: Callable[[str, int, int], Program]
) -> tuple[int | None, bool]:
    """Finds the most rows of "generate".

    Args:
        settings, memory, first, compiled: as of `largest_length`; `first` is that of the prompt,
            which needs more than a token.

    Returns:
        A pair: rows or None, and whether a program of that many rows was compiled and fits.
    """
    batch, data = settings.batch, settings.mesh[0]
    second = compiled(first.name, 2 * batch, first.tokens)

    def program(rows: int) -> Program:
        return compiled(first.name, rows, first.tokens)

    known = [(x.rows, x.total_bytes) for x in (first, second)]
    fitting = [x.rows for x in (first, second) if x.fits]
    return _verified(known, fitting, memory, data, MOST_ROWS, program)


def _verified(
    known: list[tuple[int, int | None]],
    fitting: Sequence[int],
    memory: int,
    step: int,
    most: int,
    program: Callable[[int], Program],
) -> tuple[int | None, bool]:
    """Follows the line through the last two of `known` to its end, and compiles that.

    Returns:
        A pair: the size at the end or None, and whether it was compiled and fits.
    """
    size = None
    for _ in range(_TRIES):
        line = _line(*known[-2:])
        if line is None:
            break
        size = min(_end(line, memory, 1) // step * step, most)
        if size < step or size <= max(fitting, default=0):
            break
        found = program(size)
        if found.fits:
            return size, True
        if found.total_bytes is None:
            break
        # The end lies between: the line from the nearest that fits is the better one.
        known = [known[0] if not fitting else max(x for x in known if x[0] in fitting)]
        known.append((size, found.total_bytes))
    best = max(fitting, default=None)
    if best is not None and (size is None or size <= best):
        return best, True
    return (size, False) if size and size >= step else (None, False)


def _line(one: tuple[int, int | None], other: tuple[int, int | None]) -> tuple[float, float] | None:
    """Returns the height at zero and the slope of a line through two points, or None."""
    (x, y), (u, v) = one, other
    if y is None or v is None or x == u or (v - y) / (u - x) <= 0:
        return None
    slope = (v - y) / (u - x)
    return y - slope * x, slope


def _end(line: tuple[float, float], height: float, unit: float) -> int:
    """Returns where a line reaches a height, int, in units of the axis."""
    start, slope = line
    return max(0, int((height - start) / slope / unit))


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
