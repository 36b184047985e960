"""Ctrl-C is held inside of a block and comes at its end, by whatever handler there is."""

import signal
import subprocess
import sys
import threading

import pytest

from backend_independent import backend_independent
from keras_rgemma.interrupts import held_interrupts, no_lost_interrupts

pytestmark = [backend_independent, pytest.mark.usefixtures("default_handler")]


def test_it_comes_at_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_blocks_inside_of_blocks():
    done = []
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]


def test_an_error_in_the_block_is_its_context():
    with pytest.raises(KeyboardInterrupt) as interrupt, held_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("also")
    assert isinstance(interrupt.value.__context__, ValueError)


def test_a_handler_of_a_users_own_is_called():
    received = []
    before = signal.signal(signal.SIGINT, lambda *args: received.append(args))
    try:
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert not received
        assert len(received) == 1 and received[0][0] == signal.SIGINT
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_default_of_the_system_ends_the_process():
    code = (
        "import signal; from keras_rgemma.interrupts import held_interrupts\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "with held_interrupts():\n"
        "    signal.raise_signal(signal.SIGINT); print('held', flush=True)\n"
        "print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout == "held\n"


def test_no_other_thread_sets_a_handler():
    seen = []

    def run():
        with held_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Deleted:
    """Sends SIGINT when it is deleted, where Python forgets what is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_what_python_forgets_comes_at_the_end_of_a_block():
    done, hook = [], sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), no_lost_interrupts():
        Deleted()
        done.append(1)
        with held_interrupts():
            done.append(2)
        done.append(3)
    with pytest.raises(KeyboardInterrupt), no_lost_interrupts():
        Deleted()
        done.append(4)
    assert done == [1, 2, 4]
    assert sys.unraisablehook is hook


def test_a_hook_that_stays_behind_keeps_nothing():
    seen, hook = [], sys.unraisablehook
    sys.unraisablehook = lambda unraisable: seen.append(unraisable.exc_type)
    try:
        with no_lost_interrupts():
            inner = sys.unraisablehook
            sys.unraisablehook = lambda unraisable: inner(unraisable)  # as error trackers do
        Deleted()
        with held_interrupts():
            pass
    finally:
        sys.unraisablehook = hook
    assert seen == [KeyboardInterrupt]


def test_other_exceptions_of_a_destructor_go_where_they_went():
    class Fails:
        def __del__(self):
            raise ValueError("of a destructor")

    seen, hook = [], sys.unraisablehook
    sys.unraisablehook = lambda unraisable: seen.append(str(unraisable.exc_value))
    try:
        with no_lost_interrupts():
            Fails()
    finally:
        sys.unraisablehook = hook
    assert seen == ["of a destructor"]
