"""Chooses how many threads compute a token, by the processors that the process really gets."""

import contextlib
import threading
import time

import torch

_PERIOD = 0.1  # seconds that a decision looks back at
_TRIAL = 10  # periods until all threads are tried again
_BUSY = 0.8  # the share of time for which a processor without other work runs a thread


class Threads(threading.local):
    """Gives a loop of small products fewer threads while other processes compute.

    PyTorch's threads meet after each product. If one of them waits for a processor, the others wait
    for it, and two processes that decode on the same processors would each take four times as long.
    The thread that calls never waits for anything but a processor, so the share of the time for
    which it runs says how many threads of each processor are at work. In each thread of Python
    there is one choice of its own.
    """

    def __init__(self):
        self._count = None
        self._begin()

    def _begin(self, count=None):
        self._count, self._periods = count, 0
        self._wall = self._running = 0.0

    @contextlib.contextmanager
    def chosen(self):
        """Sets the number of threads inside a `with` block, and looks what the block has taken."""
        most = torch.get_num_threads()
        count = min(self._count or most, most)
        wall, running = time.perf_counter(), time.thread_time()
        if count == most:
            yield
        else:
            torch.set_num_threads(count)
            try:
                yield
            finally:
                torch.set_num_threads(most)
        self._wall += time.perf_counter() - wall
        self._running += time.thread_time() - running
        if self._wall > _PERIOD:
            self._choose(count, most)

    def _choose(self, count, most):
        share = self._running / self._wall
        self._wall = self._running = 0.0
        self._periods += 1
        if count == most and share < _BUSY:
            self._begin(max(1, int(most * share)))
        elif self._periods >= _TRIAL:
            self._begin()
