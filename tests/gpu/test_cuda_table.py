"""The pointer table and the memory behind it, read and written behind the package's back."""

import gc

import driver
import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from minimax_rows import Operation, workspace_for
from ranks import Rank
from reference import SENTINEL
from worlds import WORLD_SIZES

COMM_SIZE = 8192
SLOTS = 3
SLOT_WORDS = COMM_SIZE // 4


def read_table(me: Rank) -> None:
    workspace = me.workspace(COMM_SIZE)
    table, size = workspace.workspace, me.world_size
    assert (table.dtype, table.shape, table.device) == (torch.int64, (3 * size + 2,), me.device)
    assert table.is_contiguous()
    assert workspace.workspace is table
    assert torch.from_dlpack(workspace._core.table()).data_ptr() == table.data_ptr(), "the table was copied"
    entries = table.cpu().tolist()
    assert entries[: 2 * size] == [0] * 2 * size
    slots = entries[2 * size : 3 * size]
    assert len(set(slots)) == size
    assert all(address % 16 == 0 for address in slots)
    assert driver.read_words(entries[3 * size], 3).tolist() == [0, 0, 0]
    assert driver.read_words(entries[3 * size + 1], 4).view(torch.int64).tolist() == [0, COMM_SIZE]
    for rank, address in enumerate(slots):
        words = driver.read_words(address, SLOTS * SLOT_WORDS)
        assert bool((words == SENTINEL).all()), f"the slots of rank {rank} are not filled with the sentinel"
    dist.barrier()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_table_has_the_entries_that_kernels_read(ranks_of, world_size):
    ranks_of(world_size).run(read_table)


def write_to_all(me: Rank) -> None:
    """Every rank leaves its mark in every slot of every rank, and finds everybody's marks in its own."""
    workspace = me.workspace(COMM_SIZE)
    slots = workspace.workspace.tolist()[2 * me.world_size : 3 * me.world_size]
    for peer, address in enumerate(slots):
        for index in range(SLOTS):
            mark = 1000 * me.rank + 10 * peer + index
            driver.write_words(address + index * COMM_SIZE + 4 * me.rank, [mark])
    dist.barrier()
    for index in range(SLOTS):
        marks = [1000 * rank + 10 * me.rank + index for rank in range(me.world_size)]
        assert driver.read_words(slots[me.rank] + index * COMM_SIZE, me.world_size).tolist() == marks
    dist.barrier()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_pointer_reaches_the_slots_of_its_rank(ranks_of, world_size):
    ranks_of(world_size).run(write_to_all)


def watch_the_slots(me: Rank) -> None:
    """After each operation: its words in its slot, nothing anywhere else, and control words that say so."""
    workspace, size = me.workspace(COMM_SIZE), me.world_size
    entries = workspace.workspace.tolist()
    most = COMM_SIZE // size // 4
    shapes = [(1, (64,)), (5, (64, 8)), (most, (8,)), (most // 2, (24, 8)), (3, (20_000,)), (2, (8,)), (130, (64,))]
    for round_, (tokens, widths) in enumerate(shapes):
        Operation.random(me, tokens, widths, seed=round_)(workspace)
        torch.cuda.synchronize()
        dist.barrier()
        used, region = tokens * len(widths), -(-tokens * len(widths) // 4) * 4
        what = f"operation {round_}"
        # Own operations leave an index of which the remainder is the slot.
        assert driver.read_words(entries[3 * size], 3).tolist() == [0, 0, (round_ + 1) % SLOTS + SLOTS], what
        extents = driver.read_words(entries[3 * size + 1], 4).view(torch.int64).tolist()
        assert extents == [4 * region * size, COMM_SIZE], what
        arrived = driver.read_words(entries[2 * size + me.rank], SLOTS * SLOT_WORDS) != SENTINEL
        # A region is rounded up to a vector; what is behind its last word may be pushed or not.
        must, may = torch.zeros_like(arrived), torch.zeros_like(arrived)
        for rank in set(range(size)) - {me.rank}:
            begin = round_ % SLOTS * SLOT_WORDS + rank * region
            must[begin : begin + used] = True
            may[begin : begin + region] = True
        assert bool(arrived[must].all()), f"{what}: words of a peer are missing"
        assert not bool(arrived[~may].any()), f"{what}: there are words where none should be"
        dist.barrier()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_operation_clears_what_the_one_before_left_and_touches_nothing_else(ranks_of, world_size):
    ranks_of(world_size).run(watch_the_slots)


def outlive_the_workspace(me: Rank, way: str) -> None:
    workspace = workspace_for(me, 64)
    table, operation = workspace.workspace, Operation.random(me, 7, (256, 64))
    expected = table.tolist()
    operation(workspace)
    if way == "cleanup":
        workspace.cleanup()
    del workspace
    gc.collect()
    torch.cuda.synchronize()
    dist.barrier()
    assert table.tolist() == expected
    own = expected[2 * me.world_size + me.rank]
    for peer, address in enumerate(expected[2 * me.world_size : 3 * me.world_size]):
        driver.write_words(address + (1 << 20) + 4 * me.rank, [100 * me.rank + peer])
    dist.barrier()
    marks = [100 * rank + me.rank for rank in range(me.world_size)]
    assert driver.read_words(own + (1 << 20), me.world_size).tolist() == marks
    if way == "cleanup":
        with pytest.raises(LamportError, match="cleaned up"):
            operation(table)
    else:
        operation(table)
        operation.check("with the table only")
    torch.cuda.synchronize()
    dist.barrier()
    view = table[2:]
    del table
    gc.collect()
    assert view.tolist() == expected[2:], "a view does not keep the table"


@pytest.mark.parametrize("way", ["cleanup", "garbage collection"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_tables_memory_lives_as_long_as_the_tensor(ranks_of, world_size, way):
    ranks_of(world_size).run(outlive_the_workspace, way)


def use_buffers(me: Rank) -> None:
    size = 100_000
    buffer = lamport_rs.IpcBuffer(me.rank, me.world_size, size, device=me.device)
    addresses = buffer.serialize()
    assert addresses == buffer.peer_ptrs
    assert addresses[me.rank] == buffer.local_ptr
    assert not driver.read_words(buffer.local_ptr, size // 4).any(), "the buffer is not filled with zeros"
    dist.barrier()
    for peer, address in enumerate(addresses):
        driver.write_words(address + size - 64 + 4 * me.rank, [10 * me.rank + peer])
    dist.barrier()
    marks = [10 * rank + me.rank for rank in range(me.world_size)]
    assert driver.read_words(buffer.local_ptr + size - 64, me.world_size).tolist() == marks
    dist.barrier()
    buffer.cleanup()
    buffer.cleanup()
    with pytest.raises(LamportError, match="cleaned up"):
        buffer.local_ptr  # noqa: B018


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_buffers_are_plain_memory_that_all_ranks_reach(ranks_of, world_size):
    ranks_of(world_size).run(use_buffers)


def use_the_cache(me: Rank) -> None:
    table = lamport_rs.get_allreduce_workspace(me.rank, me.world_size, max_tokens=512)
    assert table.device == me.device
    assert lamport_rs.get_allreduce_workspace(me.rank, me.world_size, max_tokens=512) is table
    operation = Operation.random(me, 512, (1536, 256))
    operation(table)
    operation.check("the cached table")
    torch.cuda.synchronize()
    dist.barrier()
    lamport_rs.clear_workspace_cache()
    with pytest.raises(LamportError, match="cleaned up"):
        operation(table)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_cached_workspace_is_on_the_current_device(ranks_of, world_size):
    ranks_of(world_size).run(use_the_cache)
