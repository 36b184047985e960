"""Holds Ctrl-C back where an exception would lose data."""

import contextlib
import signal
import threading


@contextlib.contextmanager
def held_interrupts():
    """Holds SIGINT inside a `with` block; its handler, such as Python's own, runs at the end.

    Signals reach the main thread alone: in any other thread nothing is held, and no handler is set.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or handler in (None, signal.SIG_IGN):  # None: set by other code than Python's
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
