"""Noticing that somebody opens a file: inotify, which Python's library does not have."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_IN_OPEN = 0x20
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opens_of(path: str) -> Iterator[Callable[[], bool]]:
    """Yields a question: whether the file was opened since the last time it was asked."""
    watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watch >= 0, os.strerror(ctypes.get_errno())
    assert _libc.inotify_add_watch(watch, path.encode(), _IN_OPEN) >= 0, os.strerror(ctypes.get_errno())

    def opened() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False

    try:
        yield opened
    finally:
        os.close(watch)
