"""Holds Ctrl-C back where an exception would lose data."""

import contextlib
import signal
import sys
import threading

_lost = []  # what `no_lost_interrupts` has found


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
    """Keeps Ctrl-C that comes inside a `with` block where Python prints and forgets exceptions.

    That is in a destructor, such as TensorFlow has, or in a callback of the garbage collector, such
    as JAX has. `raise_lost_interrupt` raises it, and so do `held_interrupts` and this block at
    their ends.
    """
    if not _is_main_thread():
        yield
        return
    hook = sys.unraisablehook

    def keep(unraisable):
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            _lost.append(unraisable.exc_value)
        else:
            hook(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        if sys.unraisablehook is keep:
            sys.unraisablehook = hook
        raise_lost_interrupt()


def raise_lost_interrupt():
    """Raises the KeyboardInterrupt that was lost since `no_lost_interrupts` began, if any."""
    if _lost and _is_main_thread():
        error = _lost[0]
        _lost.clear()
        raise error


def _is_main_thread():
    return threading.current_thread() is threading.main_thread()
