"""Threads that create workspaces over one group: one after the other.

A rendezvous takes a round of the group, or more. Were two threads of a process in one at a time, the rounds of one
would meet those of the other on another rank.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from lamport_rs._core import LamportError
from lamport_rs.rendezvous import AllGather
from lamport_rs.timeouts import limit_of

_LOOK_SECONDS = 0.005
"""A thread that waits looks so often: an interrupt may keep the other from telling anybody."""


class ByIdentity:
    """An object that cannot be hashed, as part of a key. It holds the object, so that no other gets its `id()`."""

    def __init__(self, object_: object) -> None:
        self._object = object_

    def __hash__(self) -> int:
        return id(self._object)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and other._object is self._object


def hashable(group: object) -> Hashable:
    """Return the group itself, if it can be a part of a key, or else what stands for it there."""
    try:
        hash(group)
    except TypeError:
        return ByIdentity(group)
    return group


class _Turn:
    """Held by the frame whose turn it is: a turn that an interrupt ends at any line is over."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


# For a few lines at a time. One of the interpreter's own, in a `with` statement: nothing comes between taking it and
# the statement's block. A condition is entered by Python's code, in which an interrupt may leave its lock taken for
# ever.
_lock = threading.RLock()
_turns: weakref.WeakValueDictionary[Hashable, _Turn] = weakref.WeakValueDictionary()


@contextmanager
def turn_of(group: object, rank: object, seconds: float) -> Iterator[None]:
    """Wait until no other thread is in a rendezvous over `group` as `rank`, and keep others out of it in the body.

    Ranks that are threads of this process may have one object for a group; so the rank counts, too.

    Raises:
        LamportError: If the turn does not come in so many seconds, or this very thread is in such a rendezvous, which
            a signal's handler has interrupted.
    """
    key = (hashable(group), rank if type(rank) is int else None)
    deadline, mine = time.monotonic() + seconds, _Turn()
    try:
        while (holder := _take(key, mine)) is not None:
            if holder == mine.thread:
                raise LamportError(
                    "a signal's handler asks for a rendezvous over a group while the thread that it has interrupted "
                    "is in one; let it end first, or use another group"
                )
            if time.monotonic() >= deadline:
                raise LamportError(
                    f"waited {seconds:g} s for another thread, which is creating a workspace over the same group"
                )
            time.sleep(_LOOK_SECONDS)
        yield
    finally:
        with _lock:
            if _turns.get(key) is mine:
                del _turns[key]


def _take(key: Hashable, mine: _Turn) -> int | None:
    """Take the turn, or return the thread whose turn it is."""
    with _lock:
        other = _turns.setdefault(key, mine)
        return None if other is mine else other.thread


def in_turn(all_gather: AllGather, group: object, rank: object, timeout: object) -> AllGather:
    """`all_gather` over `group`, for a rendezvous of one round."""

    def gather(message: bytes) -> list[bytes]:
        with turn_of(group, rank, limit_of(timeout)):
            return all_gather(message)

    return gather


def _start_anew() -> None:
    """Forget, in a forked process, the turns of threads that it does not have."""
    global _lock
    _lock = threading.RLock()
    _turns.clear()


os.register_at_fork(after_in_child=_start_anew)
