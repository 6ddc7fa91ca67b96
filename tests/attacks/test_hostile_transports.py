"""All-gathers that return nonsense, fail, or show the ranks different things."""

import threading
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import lamport_rs
import pytest
import torch
from forger import PROMPTLY, outcomes, workspace
from lamport_rs import LamportError


class Boundless(Sequence):
    """Says that it has more elements than there is memory."""

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> bytes:
        return b""


class Unfaithful(Sequence):
    """Raises whenever it is asked."""

    def __init__(self, of: str) -> None:
        self._of = of

    def __len__(self) -> int:
        if self._of == "its length":
            raise ZeroDivisionError("no length")
        return 2

    def __getitem__(self, index: int) -> bytes:
        raise ZeroDivisionError("no element")


class SpeechlessError(Exception):
    """Cannot say what is wrong."""

    def __str__(self) -> str:
        raise ZeroDivisionError("no words")


REPLIES = {
    "nothing": (lambda message: None, "returned NoneType, but must return a list of every rank's bytes"),
    "a number": (lambda message: 5, "returned int, but must return a list"),
    "a text": (lambda message: "text", "returned str as the message of rank 0, but must return bytes"),
    "bytes": (lambda message: message, "returned int as the message of rank 0"),
    "a dictionary": (lambda message: {0: message}, "returned dict, but must return a list"),
    "a generator": (lambda message: (each for each in [message]), "returned generator"),
    "numbers": (lambda message: [1, 2], "returned int as the message of rank 0, but must return bytes"),
    "texts": (lambda message: [message, message.decode("latin1")], "returned str as the message of rank 1"),
    "lists of numbers": (lambda message: [list(message)] * 2, "returned list as the message of rank 0"),
    "nothing of a rank": (lambda message: [message, None], "returned NoneType as the message of rank 1"),
    "no message": (lambda message: [], "the group has 0 ranks"),
    "one message": (lambda message: [message], "world_size is 2, but the group has 1 ranks"),
    "a message too many": (lambda message: [message] * 3, "rank 1: it is rank 1 of the group, but was told rank=0"),
    "a thousand messages": (lambda message: [message] + [b""] * 1000, ", and 984 more: its message has 0 bytes"),
    "a million messages": (lambda message: [message] * 10**6, "returned 1000000 messages"),
    "messages without end": (lambda message: Boundless(), "returned 4611686018427387904 messages"),
    "what has no length": (lambda message: Unfaithful("its length"), "ZeroDivisionError: no length"),
    "what has no elements": (lambda message: Unfaithful("an element"), "ZeroDivisionError: no element"),
    "a message of 64 MiB": (lambda message: [message, bytes(1 << 26)], "67108864 bytes as the message of rank 1"),
    "empty messages": (lambda message: [b"", b""], "its message has 0 bytes instead of 512"),
    "a message and its half": (lambda message: [message, message[:256]], "rank 1: its message has 256 bytes"),
}


def in_second_round(change) -> list:
    """What two ranks get beside one that asks for a second round, which brings them what `change` makes of it: of the
    rank, its message, and what was gathered.
    """

    def create(rank: int, world_size: int, all_gather) -> lamport_rs.LamportWorkspace:
        steps = iter(range(100))

        def changed(message: bytes) -> list[bytes]:
            gathered = all_gather(message)
            return gathered if next(steps) == 0 else change(rank, message, gathered)

        return workspace(rank, world_size, changed)

    return outcomes(create=create)


def refusal(all_gather) -> LamportError:
    started = time.monotonic()
    with pytest.raises(LamportError) as caught:
        workspace(0, 2, all_gather)
    assert time.monotonic() - started < PROMPTLY
    assert len(str(caught.value)) < 4096
    return caught.value


@pytest.mark.parametrize("name", REPLIES)
def test_a_callable_that_returns_nonsense_is_an_error(name):
    reply, text = REPLIES[name]
    assert text in str(refusal(reply))


@pytest.mark.parametrize("name", REPLIES)
def test_and_so_it_is_at_the_second_step(name):
    reply, _ = REPLIES[name]
    errors = in_second_round(lambda rank, message, _: reply(message))
    assert [type(error) for error in errors] == [LamportError] * 2, errors


def test_a_huge_message_is_not_copied():
    huge = bytes(1 << 26)
    tracemalloc.start()
    try:
        refusal(lambda message: [message, huge])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ConnectionError("the wire is cut"), "ConnectionError: the wire is cut"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "RecursionError: deep"),
        (StopIteration(), "StopIteration"),
        (SpeechlessError(), "SpeechlessError"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no text"), "UnicodeEncodeError"),
        (BufferError("\ud800"), "BufferError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_callable_raises_is_the_cause_of_the_error(raised, text):
    def all_gather(message: bytes) -> list[bytes]:
        raise raised

    error = refusal(all_gather)
    assert error.__cause__ is raised
    assert text in str(error)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_who_wants_to_end_the_process_is_not_held_up(raised):
    def all_gather(message: bytes) -> list[bytes]:
        raise raised

    with pytest.raises(raised):
        workspace(0, 2, all_gather)


PATIENCE = 0.5
"""Seconds that a rank waits in its all-gather for another that has given up."""


class Group:
    """Two ranks; what `change` makes of rank 0's messages is what rank 1 is brought."""

    def __init__(self, change=lambda step, messages: messages) -> None:
        self._barrier, self._messages, self._change = threading.Barrier(2), [b"", b""], change
        self._step = [0, 0]

    def all_gather(self, rank: int, message: bytes) -> list[bytes]:
        self._messages[rank] = message
        self._barrier.wait(PATIENCE)
        gathered = list(self._messages)
        self._barrier.wait(PATIENCE)
        step, self._step[rank] = self._step[rank], self._step[rank] + 1
        return self._change(step, gathered) if rank else gathered


def run(create, change=lambda step, messages: messages) -> list:
    group = Group(change)

    def attempt(rank: int):
        try:
            return create(rank, group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as executor:
        return list(executor.map(attempt, [0, 1]))


def create(rank: int, group: Group) -> lamport_rs.LamportWorkspace:
    return workspace(rank, 2, lambda message: group.all_gather(rank, message))


def other_device(step: int, messages: list[bytes]) -> list[bytes]:
    """Rank 0 calls itself something else, to rank 1 only: nothing that ranks must agree on."""
    return [messages[0].replace(b"cpu, ", b"gpu, "), messages[1]] if step == 0 else messages


def test_ranks_that_were_brought_different_messages_find_out():
    errors = run(create, other_device)
    assert [type(error) for error in errors] == [LamportError] * 2, errors
    assert str(errors[0]) == str(errors[1])
    assert "the all-gather brought the ranks different messages" in str(errors[0])


def test_a_rank_whose_own_message_was_changed_says_so_to_all():
    def own_device(step: int, messages: list[bytes]) -> list[bytes]:
        return [messages[0], messages[1].replace(b"cpu, ", b"gpu, ")] if step == 0 else messages

    errors = run(create, own_device)
    assert [type(error) for error in errors] == [LamportError] * 2, errors
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]).startswith("rank 1: the all-gather changed the message of this rank")


GARBLED = {
    "swapped": lambda step, messages: messages[::-1],
    "its own twice": lambda step, messages: [messages[1], messages[1]],
    "its peer's twice": lambda step, messages: [messages[0], messages[0]],
    "everything twice": lambda step, messages: messages + messages,
    "an empty one": lambda step, messages: [b"", messages[1]],
    "zeros": lambda step, messages: [bytes(512), messages[1]],
    "another byte": lambda step, messages: [messages[0][:24] + b"?" + messages[0][25:], messages[1]],
    "no list": lambda step, messages: [],
    "None": lambda step, messages: None,
}


@pytest.mark.parametrize("garbled", GARBLED)
def test_what_one_rank_alone_is_brought_is_told_to_the_other_in_the_next_round(garbled):
    """But for a callable that returns no list, which is not asked again."""
    change = GARBLED[garbled]
    errors = run(create, lambda step, messages: change(step, messages) if step == 0 else messages)
    assert [type(error) for error in errors] == [LamportError] * 2, errors
    if garbled != "None":
        assert str(errors[0]).startswith("rank 1: ")
    # A callable that brings another number of messages than before does not serve the round.
    if garbled not in ("None", "everything twice", "no list"):
        assert str(errors[0]) == str(errors[1])


@pytest.mark.parametrize("garbled", GARBLED)
def test_what_one_rank_alone_is_brought_in_the_last_round_is_told_through_the_memory_of_the_other(garbled):
    change = GARBLED[garbled]

    def garble(rank: int, _message: bytes, gathered: list[bytes]) -> object:
        changed = change(1, gathered[:2]) if rank else gathered[:2]
        return changed and [*changed, *gathered[2:]]

    other, error = in_second_round(garble)
    assert isinstance(error, LamportError)
    started = time.monotonic()
    lamport_rs.bind_to_thread(other)
    with pytest.raises(lamport_rs.LamportAbortedError) as caught:
        other.check()
    assert (caught.value.rank, caught.value.cause) == (1, "failed")
    with pytest.raises(LamportError):
        lamport_rs.all_reduce(torch.ones(4), other)
    # Its operations wait for two.
    assert time.monotonic() - started < 1


def test_a_second_round_that_brings_fewer_messages_than_the_first_is_an_error():
    """On the rank that it happens to: the other has what it needs."""
    other, error = in_second_round(lambda rank, _message, gathered: gathered[:2] if rank else gathered)
    assert isinstance(other, lamport_rs.LamportWorkspace)
    assert "brought 2 messages, after 3 the first time" in str(error)


def test_a_message_of_an_earlier_construction_is_refused():
    """Its block was given up, or is another by now."""
    earlier: list[bytes] = []

    def remember(step: int, messages: list[bytes]) -> list[bytes]:
        earlier.append(messages[0])
        return messages

    assert not any(isinstance(each, Exception) for each in run(create, remember))
    errors = run(create, lambda step, messages: [earlier[0], messages[1]] if step == 0 else messages)
    assert [type(error) for error in errors] == [LamportError] * 2, errors
    assert "rank 1: cannot map the memory of rank 0" in str(errors[1])
