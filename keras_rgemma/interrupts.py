"""Holds Ctrl-C back where an exception would lose data."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_late = []  # a function for each interrupt that `no_lost_interrupts` has kept


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Holds SIGINT inside a `with` block; its handler, such as Python's own, runs at the end.

    Signals reach the main thread alone: in any other thread nothing is held, and no handler is set.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not _is_main_thread() or handler in (None, signal.SIG_IGN):  # None: set by other code
        yield
        return
    received = []
    signal.signal(signal.SIGINT, lambda *args: received.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received and callable(handler):
            handler(*received[0])
        elif received:  # the default of the system, which has no function
            signal.raise_signal(signal.SIGINT)
        raise_lost_interrupt()


@contextlib.contextmanager
def no_lost_interrupts(
    forgets: Callable[[FrameType], bool] = lambda frame: False,
) -> Iterator[None]:
    """Keeps Ctrl-C that comes inside a `with` block where it would be forgotten.

    Python prints and forgets it in a destructor, such as TensorFlow has, or in a callback of the
    garbage collector, such as JAX has; other code in a bare `except`. `raise_lost_interrupt` raises
    it, and so do `held_interrupts` and this block at their ends.

    Args:
        forgets: function of a frame, that returns whether an exception raised in it, or in what it
            calls, is forgotten there.
    """
    if not _is_main_thread():
        yield
        return
    hook, handler, is_inside = sys.unraisablehook, signal.getsignal(signal.SIGINT), True

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        # Others may have put their hook on top of this one, and call it after the block, too.
        if is_inside and issubclass(unraisable.exc_type, KeyboardInterrupt):
            _late.append(_interrupt)
        else:
            hook(unraisable)

    def handle(number: int, frame: FrameType | None) -> None:
        if is_inside and any(map(forgets, _frames(frame))):
            _late.append(lambda: handler(number, frame))
        else:
            handler(number, frame)

    sys.unraisablehook = keep
    if callable(handler):
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        is_inside = False
        if sys.unraisablehook is keep:
            sys.unraisablehook = hook
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, handler)
        raise_lost_interrupt()


def raise_lost_interrupt() -> None:
    """Raises KeyboardInterrupt if one would have been lost in a block of `no_lost_interrupts`."""
    if _late and _is_main_thread():
        first = _late[0]
        _late.clear()
        first()


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
