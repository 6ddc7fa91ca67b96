"""What ranks send each other, byte by byte, written down a second time: a forger uses nothing of the package's own.

The formats are those of rust/core/src/rendezvous/message.rs, rendezvous/hello.rs and memory/handle.rs. What a page says
of a construction is `Built` in rust/protocol/src/notices.rs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MESSAGE_BYTES = 512
MAGIC = b"LAMPORT\0"
FORMAT = 6
PAYLOAD, FAILURE = 0, 1
FIRST_STEP = 0
BUILT_OFFSET = 4 * 35
"""In a status page: what its rank has made of the construction."""
WHOLE, DOUBTFUL = 1, 2
_HEADER = struct.Struct("<8sIIqII")
_HANDLE = struct.Struct("<IiQQQ")


def message(
    step: int, rank: int, content: bytes, *, kind: int = PAYLOAD, form: int = FORMAT, length: int | None = None
) -> bytes:
    """A message of one rank; `length` is what it says of its content, the truth if None."""
    header = _HEADER.pack(MAGIC, form, step, rank, kind, len(content) if length is None else length)
    return (header + content).ljust(MESSAGE_BYTES, b"\0")


def content_of(message: bytes) -> bytes:
    """A message's payload, or its failure's text."""
    *_, length = _HEADER.unpack_from(message)
    return message[_HEADER.size : _HEADER.size + length]


@dataclass(frozen=True)
class Hello:
    """The payload of the first step. The texts are bytes here: a forger's need not be text."""

    version: bytes
    host: bytes
    backend: bytes
    world_size: int
    comm_size: int
    two_shot_from: int
    device: bytes
    nonce: bytes
    handle: bytes
    page: bytes
    layout: int
    plan: tuple[int, ...]
    limits: tuple[tuple[int, int, int], ...]

    def encode(self) -> bytes:
        texts = [bytes([len(text)]) + text for text in (self.version, self.host, self.backend, self.device)]
        numbers = struct.pack("<QQQ", self.world_size, self.comm_size, self.two_shot_from)
        handles = [struct.pack("<I", len(handle)) + handle for handle in (self.handle, self.page)]
        rest = struct.pack("<I5HB", self.layout, *self.plan, len(self.limits))
        limits = [struct.pack("<QQQ", *limit) for limit in self.limits]
        return b"".join([*texts[:3], numbers, texts[3], self.nonce, *handles, rest, *limits])

    @staticmethod
    def decode(payload: bytes) -> Hello:
        rest = memoryview(payload)

        def take(count: int) -> bytes:
            nonlocal rest
            taken, rest = bytes(rest[:count]), rest[count:]
            assert len(taken) == count
            return taken

        def text() -> bytes:
            return take(take(1)[0])

        names = text(), text(), text()
        numbers = struct.unpack("<QQQ", take(24))

        def number() -> int:
            return int.from_bytes(take(4), "little")

        device, nonce = text(), take(16)
        handle, page, layout = take(number()), take(number()), number()
        plan = struct.unpack("<5H", take(10))
        limits = tuple(struct.unpack("<QQQ", take(24)) for _ in range(take(1)[0]))
        assert not rest
        return Hello(*names, *numbers, device, nonce, handle, page, layout, plan, limits)


@dataclass(frozen=True)
class HostHandle:
    """The handle of a block of shared memory: descriptor of a process, identity and size of the file."""

    process: int
    descriptor: int
    device: int
    inode: int
    size: int

    def encode(self) -> bytes:
        return _HANDLE.pack(self.process, self.descriptor, self.device, self.inode, self.size)

    @staticmethod
    def decode(handle: bytes) -> HostHandle:
        return HostHandle(*_HANDLE.unpack(handle))


def transcript(gathered: list[bytes]) -> bytes:
    """The payload of the second step: a digest (FNV-1a, 64 bits) of what the first step brought."""
    digest = 0xCBF29CE484222325
    for each in gathered:
        for byte in struct.pack("<Q", len(each)) + each:
            digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return struct.pack("<Q", digest)


def built(state: int, gathered: list[bytes]) -> bytes:
    """What a rank that was brought `gathered` writes at `BUILT_OFFSET`."""
    return struct.pack("<I", state) + transcript(gathered)
