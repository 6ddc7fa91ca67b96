"""Memory that the driver maps and that stores never reach is found while the workspace is made, on every rank."""

import gc
from itertools import permutations

import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from lamport_rs.exchange import all_gather_over
from ranks import Rank, errors_of
from test_late_fill import start_late
from test_order import use_in_another_order
from test_verification import LENGTH_OFFSET, PAYLOAD_OFFSET
from worlds import WORLD_SIZES

COMM_SIZE = 1 << 16
HANDLE_BYTES = 64


def without_handle(message: bytes) -> bytes:
    """The last 64 bytes of its payload are zeros."""
    end = PAYLOAD_OFFSET + int.from_bytes(message[LENGTH_OFFSET:PAYLOAD_OFFSET], "little")
    return message[: end - HANDLE_BYTES] + bytes(HANDLE_BYTES) + message[end:]


def create_with_an_old_block(me: Rank, reader: int, owner: int) -> None:
    """The reader is given the handle of memory that the owner no longer uses: all calls of the driver succeed."""
    over_group, first_messages = all_gather_over(None), []

    def recording(message: bytes) -> list[bytes]:
        first_messages.append(over_group(message))
        return first_messages[-1]

    old = me.workspace(COMM_SIZE, process_group=recording)
    kept = old.workspace if me.rank == owner else None
    del old
    gc.collect()
    torch.cuda.synchronize()
    dist.barrier()
    steps = iter(range(100))

    def deceived(message: bytes) -> list[bytes]:
        gathered = list(over_group(message))
        if me.rank == reader and next(steps) == 0:
            gathered[owner] = first_messages[0][owner]
        return gathered

    try:
        me.workspace(COMM_SIZE, process_group=deceived)
    finally:
        dist.barrier()
        del kept


@pytest.mark.parametrize("pair", ["first and last", "last and first"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_stores_that_do_not_arrive_are_an_error_on_every_rank(ranks_of, world_size, pair):
    reader, owner = (0, world_size - 1) if pair == "first and last" else (world_size - 1, 0)
    errors = errors_of(ranks_of(world_size).try_run(create_with_an_old_block, reader, owner))
    assert all(isinstance(error, LamportError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1
    assert f"stores of rank {reader} do not arrive at" in str(errors[0])


def create_with_a_bad_handle(me: Rank, reader: int, owner: int) -> str:
    """The driver opens no memory for the reader, as where processes share no IPC namespace."""
    over_group, steps = all_gather_over(None), iter(range(100))

    def all_gather(message: bytes) -> list[bytes]:
        gathered = list(over_group(message))
        if me.rank == reader and next(steps) == 0:
            gathered[owner] = without_handle(gathered[owner])
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
def test_a_push_to_a_rank_that_is_late_after_the_exchange_is_not_lost(ranks_of, world_size):
    assert ranks_of(world_size).run(start_late, False) == ["right"] * world_size


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_fill_after_the_exchange_would_be_noticed(ranks_of, world_size):
    """The planted defect of the test above."""
    assert ranks_of(world_size).run(start_late, True)[0].startswith("missed")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_workspaces_used_in_another_order_end_in_an_error_that_names_who_is_missing(ranks_of, world_size):
    missing = ranks_of(world_size).run(use_in_another_order)
    assert missing == [tuple(range(1, world_size))] + [(0,)] * (world_size - 1)
