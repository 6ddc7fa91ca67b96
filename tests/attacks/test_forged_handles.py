"""Handles that do not name what they should: refused on every rank, before anything of it is mapped."""

import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import wire
from forger import (
    ALL_SEALS,
    NAME,
    NONCE,
    buffer,
    check,
    handle_of,
    memory_file,
    outcomes,
    refusal,
    size_of_block,
    workspace,
)

PAGE = os.sysconf("SC_PAGE_SIZE")


def with_handle(**lies):
    """The forger's own block, under wrong numbers."""

    def lie(hello: wire.Hello) -> wire.Hello:
        handle = wire.HostHandle.decode(hello.handle)
        changes = {name: value(handle) if callable(value) else value for name, value in lies.items()}
        return replace(hello, handle=replace(handle, **changes).encode())

    return lie


@pytest.mark.parametrize("create", [workspace, buffer], ids=lambda create: create.__name__)
@pytest.mark.parametrize("honest", [1, 2, 4])
def test_a_forger_that_does_not_lie_is_a_rank_like_any_other(create, honest):
    """Else the refusals below would be those of a bad forger."""
    for each in outcomes(lambda hello: hello, honest=honest, create=create):
        assert not isinstance(each, Exception), each


NUMBERS = {
    "process 0": ({"process": 0}, "no rank has a block under such numbers"),
    "a negative process": ({"process": 2**32 - os.getpid()}, "no rank has a block under such numbers"),
    "a process beyond all numbers": ({"process": 2**31}, "no rank has a block under such numbers"),
    "a process that is not there": ({"process": 2**31 - 1}, "No such file or directory.*in different PID namespaces"),
    "a negative descriptor": ({"descriptor": -1}, "no rank has a block under such numbers"),
    "the directory it would start in": ({"descriptor": -100}, "no rank has a block under such numbers"),
    "the least descriptor": ({"descriptor": -(2**31)}, "no rank has a block under such numbers"),
    "standard input": ({"descriptor": 0}, "no rank has a block under such numbers"),
    "standard output": ({"descriptor": 1}, "no rank has a block under such numbers"),
    "a descriptor that is not there": ({"descriptor": 2**31 - 1}, "No such file or directory"),
    "another file": ({"inode": lambda handle: handle.inode + 1}, "another file than the peer exported"),
    "another file system": ({"device": lambda handle: handle.device + 1}, "another file than the peer exported"),
    "no bytes": ({"size": 0}, "the peer gives it 0 bytes, but"),
    "fewer bytes": ({"size": lambda handle: handle.size - PAGE}, "bytes were agreed on|but .* were agreed on"),
    "more bytes": ({"size": lambda handle: handle.size + PAGE}, "were agreed on"),
    "half a page more": ({"size": lambda handle: handle.size + 1}, "were agreed on"),
    "half of all bytes": ({"size": 2**63}, "the peer gives it 9223372036854775808 bytes"),
    "all bytes": ({"size": 2**64 - 1}, "the peer gives it 18446744073709551615 bytes"),
    "all bytes in pages": ({"size": 2**64 - PAGE}, "were agreed on"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_handle_with_wrong_numbers_is_refused(name):
    lies, text = NUMBERS[name]
    check(text, refusal(with_handle(**lies)))


FILES = {
    # name: (the file's size by that of a block, other properties, what is said)
    "shorter, and its handle says so": (lambda size: PAGE, {}, "the peer gives it .* bytes"),
    "a page shorter": (lambda size: size - PAGE, {}, "the peer gives it"),
    "longer": (lambda size: size + PAGE, {}, "the peer gives it"),
    "not sealed": (None, {"seals": 0}, "its size can change in use"),
    "sealed against growing only": (None, {"seals": fcntl.F_SEAL_SEAL | fcntl.F_SEAL_GROW}, "its size can change"),
    "sealed against shrinking only": (None, {"seals": fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK}, "its size can change"),
    "open to further seals": (None, {"seals": fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK}, "its size can change"),
    "sealed against writing": (None, {"seals": ALL_SEALS | fcntl.F_SEAL_WRITE}, "mapping .* bytes of shared memory"),
    "a stranger's, as the name says": (None, {"name": "stranger"}, r"it is /memfd:stranger .*, no block of lamport-rs"),
    "almost a block, as the name says": (None, {"name": f"{NAME}2"}, r"it is /memfd:lamport-rs2 .*, no block of"),
    "with another mark": (None, {"mark": b"something else.."}, "what the peer wrote there is not what is read here"),
}


@pytest.mark.parametrize("create", [workspace, buffer], ids=lambda create: create.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_file_in_memory_that_is_no_block_of_the_agreed_size_is_refused(name, create):
    size, properties, text = FILES[name]
    with ExitStack() as opened:

        def lie(hello: wire.Hello) -> wire.Hello:
            agreed = size_of_block(hello)
            file = opened.enter_context(memory_file(size(agreed) if size else agreed, **properties))
            return replace(hello, handle=handle_of(file))

        check(text, refusal(lie, create=create))


@pytest.mark.parametrize("claimed", [True, False], ids=["and says the agreed size", "and says so"])
def test_a_block_that_is_shorter_than_agreed_is_refused(claimed):
    with memory_file(PAGE) as short:

        def lie(hello: wire.Hello) -> wire.Hello:
            lies = {"size": size_of_block(hello)} if claimed else {}
            return replace(hello, handle=handle_of(short, **lies))

        assert "were agreed on" in refusal(lie)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64, 80, 81])
def test_a_handle_of_another_length_is_refused(length):
    text = refusal(lambda hello: replace(hello, handle=hello.handle.ljust(length, b"\0")[:length]))
    assert ("a payload that cannot be read" if length > 80 else "its handle cannot be read") in text


def test_a_handle_that_says_to_be_longer_than_it_is_is_refused():
    def lie(hello: wire.Hello) -> bytes:
        payload = bytearray(hello.encode())
        at = payload.index(hello.handle) - 4
        payload[at : at + 4] = b"\xff\xff\xff\x7f"
        return wire.message(0, 2, bytes(payload))

    assert "rank 2 sent a payload that cannot be read" in refusal(lie)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_handle_of_another_ranks_block_is_refused(victim):
    heard: list[wire.Hello] = []

    def lie(hello: wire.Hello) -> wire.Hello:
        return replace(hello, handle=heard[victim].handle, nonce=heard[victim].nonce)

    assert f"rank {victim} and rank 2 sent handles of the same memory" in refusal(lie, heard=heard)


def test_another_ranks_block_by_another_descriptor_is_refused():
    """A forger that can reach it opens it for itself: other numbers, the same file."""
    heard: list[wire.Hello] = []
    mine: list[int] = []

    def lie(hello: wire.Hello) -> wire.Hello:
        victim = wire.HostHandle.decode(heard[1].handle)
        mine.append(os.open(f"/proc/{victim.process}/fd/{victim.descriptor}", os.O_RDWR | os.O_CLOEXEC))
        return replace(hello, handle=handle_of(mine[0]), nonce=heard[1].nonce)

    try:
        assert "rank 1 and rank 2 sent handles of the same memory" in refusal(lie, heard=heard)
    finally:
        os.close(mine[0])


ALONE = """
import os, sys
sys.path[:0] = {path!r}
import lamport_rs, wire
result = os.dup(1)
for stream in {closed!r}:
    os.close(stream)
def all_gather(message):
    handle = wire.HostHandle.decode(wire.Hello.decode(wire.content_of(message)).handle)
    os.write(result, str(handle.descriptor).encode())
    return []
try:
    lamport_rs.LamportWorkspace(0, 2, 4096, all_gather, device="cpu")
except lamport_rs.LamportError:
    pass
"""


@pytest.mark.long
@pytest.mark.parametrize("closed", [(0,), (0, 1, 2)], ids=str)
def test_a_block_never_takes_the_place_of_a_closed_standard_stream(closed):
    """What the process prints would be written into it."""
    script = ALONE.format(path=sys.path, closed=closed)
    ended = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False)
    assert int(ended.stdout) >= 3


def test_the_forgers_file_is_what_ranks_make():
    """The name, the size, the seals and the mark of `memory_file` are a real block's."""
    heard: list[wire.Hello] = []

    def compare(forged: wire.Hello) -> wire.Hello:
        for hello in (forged, heard[0]):
            handle = wire.HostHandle.decode(hello.handle)
            assert os.readlink(f"/proc/self/fd/{handle.descriptor}").startswith(f"/memfd:{NAME} ")
            assert fcntl.fcntl(handle.descriptor, fcntl.F_GET_SEALS) & ALL_SEALS == ALL_SEALS
            assert os.fstat(handle.descriptor).st_size == handle.size
            assert os.pread(handle.descriptor, 16, handle.size - 16) == hello.nonce
        assert forged.nonce == NONCE
        return forged

    assert not any(isinstance(each, Exception) for each in outcomes(compare, heard=heard))
