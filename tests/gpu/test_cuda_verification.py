"""Mappings are proved while a workspace is made, and what cannot be proved is the same error on every rank."""

import contextlib
import dataclasses
import os
import signal
import time
from itertools import permutations

import pytest
import torch.distributed as dist
from lamport_rs import LamportAbortedError, LamportError
from lamport_rs.rendezvous import all_gather_over
from ranks import Rank, errors_of
from test_faults_order import use_in_another_order
from test_late_fill import start_late
from wire import FIRST_STEP, Hello, HostHandle, content_of
from wire import message as encode
from worlds import WORLD_SIZES

COMM_SIZE = 1 << 16
MAPPED = 1
"""The step of the rendezvous between mapping and the verification by stores, which there is if a page is hidden."""
TOO_LATE = 12.0
"""Seconds; the verification waits ten."""
HELD_UP = 4.0
DEVICE_BYTES = 16
"""Of a handle: the UUID of its device, in front of the driver's 64 bytes."""


def hide_page(message: bytes) -> None:
    """Keep the peers from mapping the page of the rank that introduces itself so."""
    page = HostHandle.decode(Hello.decode(content_of(message)).page)
    other = os.open(os.devnull, os.O_RDWR)
    os.dup2(other, page.descriptor, inheritable=False)
    os.close(other)


def create_without_stores(me: Rank, silent: int) -> None:
    """One rank has mapped its peers, and its stores do not come while the others look for them."""
    over_group, steps = all_gather_over(None), iter(range(100))

    def all_gather(message: bytes) -> list[bytes]:
        step = next(steps)
        if step == FIRST_STEP and me.rank == silent:
            hide_page(message)
        gathered = over_group(message)
        if step == MAPPED and me.rank == silent:
            time.sleep(TOO_LATE)
        return gathered

    me.workspace(COMM_SIZE, process_group=all_gather)


@pytest.mark.parametrize("silent", ["first", "last"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_stores_that_do_not_arrive_are_an_error_on_every_rank(ranks_of, world_size, silent):
    rank = 0 if silent == "first" else world_size - 1
    errors = errors_of(ranks_of(world_size).try_run(create_without_stores, rank))
    assert all(isinstance(error, LamportError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1
    assert f"stores of rank {rank} do not arrive at" in str(errors[0])


def interrupt_the_wait(me: Rank, hides: bool) -> float:
    """Rank 1 is held up, before it maps or, if rank 0 `hides` its page, before it verifies; a signal comes to rank 0.

    Returns the seconds that rank 0 took.
    """
    over_group, steps = all_gather_over(None), iter(range(100))

    def all_gather(message: bytes) -> list[bytes]:
        step = next(steps)
        if step == FIRST_STEP and me.rank == 0 and hides:
            hide_page(message)
        gathered = over_group(message)
        if step == (MAPPED if hides else FIRST_STEP) and me.rank == 1:
            time.sleep(HELD_UP)
        return gathered

    took = 0.0
    if me.rank == 0:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, HELD_UP / 4)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            me.workspace(COMM_SIZE, process_group=all_gather)
        took = time.monotonic() - began
        signal.signal(signal.SIGALRM, before)
        dist.barrier()
    else:
        workspace = None
        with contextlib.suppress(LamportError):
            workspace = me.workspace(COMM_SIZE, process_group=all_gather)
        dist.barrier()  # Rank 0 has raised.
        if workspace is not None:
            assert hides, "a workspace without a rank whose page could be read"
            with pytest.raises(LamportAbortedError, match="rank 0"):
                workspace.check()
    return took


@pytest.mark.gpu(2)
def test_a_signal_ends_the_wait_for_a_peer(ranks_of):
    took, _ = ranks_of(2).run(interrupt_the_wait, False)
    assert HELD_UP / 4 <= took < HELD_UP / 4 + 0.5


@pytest.mark.gpu(2)
def test_a_signal_is_heard_when_peers_have_verified_where_they_cannot_read_the_page(ranks_of):
    took, _ = ranks_of(2).run(interrupt_the_wait, True)
    assert HELD_UP / 4 <= took < HELD_UP + 0.5


def spoil_handle(message: bytes, sender: int) -> bytes:
    """All that the driver gave is other bytes; what is in front of it, the device, stays."""
    hello = Hello.decode(content_of(message))
    device, handle = hello.handle[:DEVICE_BYTES], hello.handle[DEVICE_BYTES:]
    spoiled = dataclasses.replace(hello, handle=device + bytes(byte ^ 0xFF for byte in handle))
    return encode(FIRST_STEP, sender, spoiled.encode())


def create_with_a_bad_handle(me: Rank, reader: int, owner: int) -> str:
    """The driver opens no memory for the reader, as where processes share no IPC namespace."""
    over_group, steps = all_gather_over(None), iter(range(100))

    def all_gather(message: bytes) -> list[bytes]:
        gathered = list(over_group(message))
        if me.rank == reader and next(steps) == 0:
            gathered[owner] = spoil_handle(gathered[owner], owner)
        return gathered

    me.workspace(COMM_SIZE, process_group=all_gather)
    return "a workspace"


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_handle_that_one_rank_cannot_open_is_an_error_on_every_rank(ranks_of, world_size):
    ranks = ranks_of(world_size)
    for reader, owner in permutations(range(world_size), 2):
        errors = errors_of(ranks.try_run(create_with_a_bad_handle, reader, owner))
        assert all(isinstance(error, LamportError) for error in errors), errors
        assert len({str(error) for error in errors}) == 1
        assert f"rank {reader}: cannot map the memory of rank {owner}" in str(errors[0])
    assert ranks.run(create_with_a_bad_handle, -1, -1) == ["a workspace"] * world_size


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_push_to_a_rank_that_is_late_after_the_rendezvous_is_not_lost(ranks_of, world_size):
    assert ranks_of(world_size).run(start_late, False) == ["right"] * world_size


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_fill_after_the_rendezvous_would_be_noticed(ranks_of, world_size):
    """The planted defect of the test above."""
    assert ranks_of(world_size).run(start_late, True)[0].startswith("missed")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_workspaces_used_in_another_order_end_in_an_error_that_names_who_is_missing(ranks_of, world_size):
    missing = ranks_of(world_size).run(use_in_another_order)
    assert missing == [tuple(range(1, world_size))] + [(0,)] * (world_size - 1)
