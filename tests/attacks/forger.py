"""A rank that lies, beside ranks that do not.

The honest ranks are threads of this process that create a workspace or a buffer; their all-gather shows the forger what
they sent before it answers, as the strongest adversary would see it. The forger says the truth in everything but the
lie that a test gives it, so that a refusal is the lie's.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import lamport_rs
import wire
from lamport_rs import LamportError, LamportWorkspace

COMM_SIZE = 1 << 16
PROMPTLY = 5.0
NONCE = b"sixteen bytes!!!"
NAME = "lamport-rs"
ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

Create: TypeAlias = Callable[[int, int, Callable[[bytes], list[bytes]]], Any]
"""Creates something of one honest rank: rank, world size, all-gather."""
Lie: TypeAlias = Callable[[wire.Hello], "wire.Hello | bytes"]
"""Changes the forger's introduction, or gives the whole first message."""

Second: TypeAlias = Callable[[bytes], bytes]
"""Changes the forger's second message, which says that it has mapped the others' memory."""
Tell: TypeAlias = Callable[[list[bytes]], bytes]
"""Gives what the forger writes in its page about the construction, in which all were brought these messages."""


def need_another_round(gathered: list[bytes]) -> bytes:
    return wire.built(wire.DOUBTFUL, gathered)


def have_all(gathered: list[bytes]) -> bytes:
    return wire.built(wire.WHOLE, gathered)


def workspace(rank: int, world_size: int, all_gather: Callable[[bytes], list[bytes]]) -> LamportWorkspace:
    return LamportWorkspace(rank, world_size, COMM_SIZE, all_gather, device="cpu", timeout=2)


def buffer(rank: int, world_size: int, all_gather: Callable[[bytes], list[bytes]]) -> lamport_rs.IpcBuffer:
    return lamport_rs.IpcBuffer(rank, world_size, COMM_SIZE, all_gather, device="cpu")


@contextmanager
def memory_file(size: int, *, name: str = NAME, seals: int = ALL_SEALS, mark: bytes = NONCE) -> Iterator[int]:
    """A file in memory as a rank makes them: of a size, by a name, sealed, and with the mark at its end."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, mark, max(0, size - len(mark)))
        if seals:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


def handle_of(descriptor: int, **lies: int) -> bytes:
    """The handle of an open file of this process: the truth, but for `lies`."""
    status = os.fstat(descriptor)
    truth = wire.HostHandle(os.getpid(), descriptor, status.st_dev, status.st_ino, status.st_size)
    return replace(truth, **lies).encode()


def size_of_block(hello: wire.Hello) -> int:
    """Bytes of the file that a rank has to send, as the other ranks' handles say."""
    return wire.HostHandle.decode(hello.handle).size


class Forger:
    """The last rank of a group, between honest ones."""

    def __init__(self, honest: int, lie: Lie, second: Second, tell: Tell, heard: list[wire.Hello]) -> None:
        self._rank, self._lie, self._second, self._tell, self._heard = honest, lie, second, tell, heard
        self._step, self._files, self._page = 0, ExitStack(), -1
        self._sent: list[bytes] = [b""] * honest
        self._gathered: list[bytes] = []
        self._barrier = threading.Barrier(honest, action=self._answer)

    def all_gather(self, rank: int, message: bytes) -> list[bytes]:
        """What carries the rendezvous of honest rank `rank`."""
        self._sent[rank] = message
        self._barrier.wait(PROMPTLY)
        gathered = list(self._gathered)
        self._barrier.wait(PROMPTLY)
        return gathered

    def _answer(self) -> None:
        """Once all honest ranks are there: before they go on with what was gathered, and after."""
        step, between = divmod(self._step, 2)
        self._step += 1
        if between:
            return
        honest = list(self._sent)
        self._gathered = [*honest, self._message(step, honest)]
        if step == 0 and self._page >= 0:
            os.pwrite(self._page, self._tell(self._gathered), wire.BUILT_OFFSET)

    def _message(self, step: int, honest: list[bytes]) -> bytes:
        if step:
            return self._second(wire.message(step, self._rank, wire.transcript(self._gathered)))
        self._heard[:] = [wire.Hello.decode(wire.content_of(message)) for message in honest]
        model = self._heard[0]
        handle, page = self._file(model.handle), self._file(model.page)
        self._page = wire.HostHandle.decode(page).descriptor if page else -1
        mine = replace(model, device=b"cpu, forged", nonce=NONCE, handle=handle, page=page)
        answer = self._lie(mine)
        return answer if isinstance(answer, bytes) else wire.message(0, self._rank, answer.encode())

    def _file(self, model: bytes) -> bytes:
        """The handle of a file like the one of another rank's handle; none where that has none."""
        if not model:
            return b""
        return handle_of(self._files.enter_context(memory_file(wire.HostHandle.decode(model).size)))

    def close(self) -> None:
        self._files.close()


def truth(message: Any) -> Any:
    return message


def outcomes(
    lie: Lie = truth,
    *,
    second: Second = truth,
    tell: Tell = need_another_round,
    heard: list[wire.Hello] | None = None,
    honest: int = 2,
    create: Create = workspace,
) -> list[Any]:
    """What each honest rank gets: what it creates, or what it raises.

    `heard` is filled with the introductions of the honest ranks before the lie is told.
    """
    forger = Forger(honest, lie, second, tell, [] if heard is None else heard)

    def attempt(rank: int) -> Any:
        try:
            return create(rank, honest + 1, lambda message: forger.all_gather(rank, message))
        except Exception as error:
            return error

    try:
        with ThreadPoolExecutor(honest) as executor:
            return list(executor.map(attempt, range(honest)))
    finally:
        forger.close()


def refusal(lie: Lie = truth, *, honest: int = 2, **options: Any) -> str:
    """The one error that every honest rank raises, promptly; the options are those of `outcomes`."""
    started = time.monotonic()
    errors = outcomes(lie, honest=honest, **options)
    took = time.monotonic() - started
    assert [type(error) for error in errors] == [LamportError] * honest, errors
    assert len({str(error) for error in errors}) == 1, errors
    assert took < PROMPTLY
    text = str(errors[0])
    assert text.isprintable()
    assert len(text) < 4096
    return text


def check(pattern: str, text: str) -> None:
    """Whether the pattern is found in the text; if not, both are shown."""
    assert re.search(pattern, text), f"{pattern!r} is not in {text!r}"
