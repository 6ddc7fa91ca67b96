"""Turns of threads that create over one group: an interrupt, wherever it comes, leaves nothing behind."""

import random
import signal
import threading
from types import FrameType

import pytest
from lamport_rs import LamportError
from lamport_rs.turns import turn_of

INTERRUPTS = 4000
LONGEST_PAUSE = 20e-6
"""Seconds after which an interrupt comes: a turn takes a few microseconds."""


class AlarmError(Exception):
    pass


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise AlarmError


def enter_from_another_thread(group: object) -> list[str]:
    outcome: list[str] = []

    def enter() -> None:
        with turn_of(group, 0, 5):
            outcome.append("entered")

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(10)
    return outcome


def test_an_interrupt_at_any_time_leaves_the_turn_to_others():
    group, dice, caught = object(), random.Random(0), 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(INTERRUPTS):
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, LONGEST_PAUSE))
                for _ in range(20):
                    with turn_of(group, 0, 5):
                        pass
                signal.pause()
            except AlarmError:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == INTERRUPTS
    assert enter_from_another_thread(group) == ["entered"]


def test_a_turn_is_of_one_thread_and_is_waited_for():
    group = object()
    with turn_of(group, 0, 5):
        with pytest.raises(LamportError, match="signal's handler"), turn_of(group, 0, 5):
            pass
        with turn_of(group, 1, 5), turn_of(object(), 0, 5):
            pass
        errors: list[str] = []

        def wait() -> None:
            try:
                with turn_of(group, 0, 0.05):
                    pass
            except LamportError as error:
                errors.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        (error,) = errors
        assert "another thread" in error
    assert enter_from_another_thread(group) == ["entered"]
