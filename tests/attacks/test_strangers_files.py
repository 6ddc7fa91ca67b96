"""Handles that name somebody else's files: refused, and the files are neither changed nor even opened."""

import os
import socket
from contextlib import contextmanager
from dataclasses import replace

import pytest
import wire
from forger import NONCE, handle_of, refusal, size_of_block
from watch import opens_of


@contextmanager
def opened(path, flags=os.O_RDWR | os.O_NONBLOCK):
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def naming(descriptor: int, says_a_blocks_size: bool):
    def lie(hello: wire.Hello) -> wire.Hello:
        lies = {"size": size_of_block(hello)} if says_a_blocks_size else {}
        return replace(hello, handle=handle_of(descriptor, **lies))

    return lie


def blocks_size() -> int:
    sizes = []

    def ask(hello: wire.Hello) -> wire.Hello:
        sizes.append(size_of_block(hello))
        return replace(hello, layout=0)

    refusal(ask)
    return sizes[0]


@pytest.mark.parametrize("place", ["on a disk", "in memory", "by a block's name"])
def test_a_file_of_the_right_size_with_the_right_mark_is_neither_opened_nor_changed(tmp_path, place):
    """Somebody's database, say, that happens to be as long as a block, and whose last bytes are known."""
    name = "memfd:lamport-rs (deleted)" if place == "by a block's name" else "victim.db"
    folder = tmp_path if place == "on a disk" else f"/dev/shm/lamport-rs-attacks-{os.getpid()}"
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    content = os.urandom(blocks_size() - len(NONCE)) + NONCE
    try:
        with open(path, "wb") as file:
            file.write(content)
        with opened(path) as descriptor, opens_of(path) as was_opened:
            assert "no block of lamport-rs" in refusal(naming(descriptor, says_a_blocks_size=True))
            assert not was_opened()
        with open(path, "rb") as file:
            assert file.read() == content
    finally:
        os.unlink(path)
        if folder != tmp_path:
            os.rmdir(folder)


@pytest.mark.parametrize("says_a_blocks_size", [True, False], ids=["of a block's size", "of its own size"])
@pytest.mark.parametrize("kind", ["FIFO", "terminal", "directory", "file"])
def test_what_is_no_file_in_memory_is_not_opened(tmp_path, kind, says_a_blocks_size):
    """To open it is to do something: a terminal becomes this process's, a pipe's reader sees a writer come and go."""
    path, flags = str(tmp_path / "it"), os.O_RDWR | os.O_NONBLOCK
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "terminal":
        leader, follower = os.openpty()
        path = os.ttyname(follower)
        flags |= os.O_NOCTTY
    elif kind == "directory":
        os.mkdir(path)
        flags = os.O_RDONLY
    else:
        with open(path, "wb") as file:
            file.write(bytes(4096))
    with opened(path, flags) as descriptor, opens_of(path) as was_opened:
        text = refusal(naming(descriptor, says_a_blocks_size))
        assert ("no block of lamport-rs" if says_a_blocks_size else "were agreed on") in text
        assert not was_opened()
        os.close(os.open(path, flags))
        assert was_opened(), "the watch would have noticed"
    if kind == "terminal":
        os.close(leader)
        os.close(follower)


@pytest.mark.parametrize("kind", ["pipe", "socket", "eventfd", "/dev/null", "/dev/zero", "/proc/self/mem", "pidfd"])
def test_descriptors_of_other_kinds_are_refused(kind):
    left = right = None
    if kind == "pipe":
        descriptor, right = os.pipe()
    elif kind == "socket":
        left, right = (each.detach() for each in socket.socketpair())
        descriptor = left
    elif kind == "eventfd":
        descriptor = os.eventfd(0)
    elif kind == "pidfd":
        descriptor = os.pidfd_open(os.getpid())
    else:
        descriptor = os.open(kind, os.O_RDWR)
    try:
        assert "no block of lamport-rs" in refusal(naming(descriptor, says_a_blocks_size=True))
    finally:
        os.close(descriptor)
        if right is not None:
            os.close(right)


def test_the_name_of_a_strangers_file_cannot_write_to_a_terminal():
    folder = f"/dev/shm/\x1b[31m{os.getpid()}"
    path = f"{folder}/\nrank 0"
    os.mkdir(folder)
    try:
        with open(path, "wb"), opened(path) as descriptor:
            text = refusal(naming(descriptor, says_a_blocks_size=True))
    finally:
        os.unlink(path)
        os.rmdir(folder)
    assert rf"it is /dev/shm/\u{{1b}}[31m{os.getpid()}/\nrank 0, no block" in text
