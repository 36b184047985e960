"""Chooses how many threads compute a token, by the processors that the process really gets."""

import contextlib
import threading
import time
from collections.abc import Iterator

import torch

_PERIOD = 0.1  # seconds that a decision looks back at
_TRIAL = 10  # periods until all threads are tried again
_BUSY = 0.8  # the share of time for which a processor without other work runs a thread


class Threads(threading.local):
    """Gives a loop of small products fewer threads while other processes compute.

    PyTorch's threads meet after each product. If one of them waits for a processor, the others wait
    for it, and two processes that decode on the same processors would each take four times as long.
    The thread that calls waits for little but a processor, so the share of the time for which it
    runs says how many threads of each processor are at work.

    A thread of Python that begins to use PyTorch would keep the number that it finds. So only the
    main thread changes it, and not beside threads of the program's own.
    """

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, count: int | None) -> None:
        """Begins a period with a number of threads, None for all."""
        self._count, self._periods = count, 0
        self._wall = self._running = 0.0

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        """Sets the number of threads inside a `with` block, and looks what the block has taken."""
        if not _is_alone():
            yield
            return
        most = torch.get_num_threads()
        count = min(self._count or most, most)
        wall, running = time.perf_counter(), time.thread_time()
        try:
            if count < most:
                torch.set_num_threads(count)
            yield
        finally:
            if count < most:
                torch.set_num_threads(most)
        self._wall += time.perf_counter() - wall
        self._running += time.thread_time() - running
        if self._wall > _PERIOD:
            self._choose(count, most)

    def _choose(self, count: int, most: int) -> None:
        share = self._running / self._wall
        self._wall = self._running = 0.0
        self._periods += 1
        if count == most and share < _BUSY:
            self._begin(max(1, int(most * share)))
        elif self._periods >= _TRIAL:
            self._begin(None)


def _is_alone() -> bool:
    """Returns whether this is the main thread, beside none but daemons, such as a notebook's."""
    main = threading.main_thread()
    is_main = threading.current_thread() is main
    return is_main and all(x is main or x.daemon for x in threading.enumerate())
