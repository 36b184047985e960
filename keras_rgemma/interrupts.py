"""Holds Ctrl-C back where an exception would lose data."""

import contextlib
import signal
import sys
import threading

_lost = []  # a mark for each interrupt that `no_lost_interrupts` has kept


@contextlib.contextmanager
def held_interrupts():
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
def no_lost_interrupts():
    """Keeps Ctrl-C that comes inside a `with` block where Python would print and forget it.

    That is in a destructor, such as TensorFlow has, or in a callback of the garbage collector, such
    as JAX has. `raise_lost_interrupt` raises it, and so do `held_interrupts` and this block at
    their ends.
    """
    if not _is_main_thread():
        yield
        return
    hook, is_inside = sys.unraisablehook, True

    def keep(unraisable):
        # Others may have put their hook on top of this one, and call it after the block, too.
        if is_inside and issubclass(unraisable.exc_type, KeyboardInterrupt):
            _lost.append(True)
        else:
            hook(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        is_inside = False
        if sys.unraisablehook is keep:
            sys.unraisablehook = hook
        raise_lost_interrupt()


def raise_lost_interrupt():
    """Raises KeyboardInterrupt if Python would have lost one in a block of `no_lost_interrupts`."""
    if _lost and _is_main_thread():
        _lost.clear()
        raise KeyboardInterrupt


def _is_main_thread():
    return threading.current_thread() is threading.main_thread()
