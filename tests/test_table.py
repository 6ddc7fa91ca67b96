"""The pointer table: the ABI that kernels of serving stacks read."""

import gc
from pathlib import Path

import lamport_rs
import numpy as np
import pytest
import torch
import torch.distributed as dist
from foreign_kernel import SENTINEL, SLOTS, Table, lamport_all_reduce, memory_at
from ranks import Rank, ThreadRanks
from reference import check_same_bits, random_tensor, rounded_sum

COMM_SIZE = 8192
LINE_BYTES = 64
"""The host's all-reduce sends whole lines where they fit into the slot."""


def test_the_layout_that_is_tested_here_is_that_of_the_version():
    """`Table` reads version 2. A layout that differs takes another number, another reader, and a line in the docs."""
    assert lamport_rs.TABLE_ABI_VERSION == 2
    assert "| 2 |" in (Path(__file__).parents[1] / "docs/compatibility.md").read_text()


def read_table(me: Rank) -> None:
    workspace = me.workspace(COMM_SIZE)
    tensor = workspace.workspace
    assert tensor.dtype == torch.int64
    assert tensor.shape == (3 * me.world_size + 2,)
    assert tensor.is_contiguous()
    assert tensor.device == me.device
    table = Table(tensor, me.world_size)
    assert table.reserved == [0] * 2 * me.world_size
    assert len(set(table.slot_addresses)) == me.world_size
    assert table.counters.tolist() == [0, 0, 0]
    assert table.extents.tolist() == [0, COMM_SIZE]
    # No peer has been called upon yet: all is as it was filled.
    for index in range(SLOTS):
        assert (table.slot(me.rank, index) == SENTINEL).all(), f"slot {index} is not filled with the sentinel"


@pytest.mark.parametrize("world_size", [2, 3, 4, 8, 16])
def test_the_table_has_the_entries_that_kernels_read(ranks_of, world_size):
    ranks_of(world_size).run(read_table)


def write_to_all(me: Rank) -> None:
    """Every rank leaves its mark in every slot of every rank, and finds everybody's marks in its own."""
    workspace = me.workspace(COMM_SIZE)
    table = Table(workspace.workspace, me.world_size)
    for peer in range(me.world_size):
        for index in range(SLOTS):
            table.slot(peer, index)[me.rank] = 1000 * me.rank + 10 * peer + index
            table.slot(peer, index)[-1 - me.rank] = me.rank
    dist.barrier()
    for index in range(SLOTS):
        marks = [1000 * rank + 10 * me.rank + index for rank in range(me.world_size)]
        assert table.slot(me.rank, index)[: me.world_size].tolist() == marks
        assert table.slot(me.rank, index)[-me.world_size :].tolist() == list(range(me.world_size))[::-1]
    dist.barrier()


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_pointer_reaches_the_slots_of_its_rank(ranks_of, world_size):
    ranks_of(world_size).run(write_to_all)


def watch_the_control_words(me: Rank) -> None:
    workspace = me.workspace(COMM_SIZE)
    table = Table(workspace.workspace, me.world_size)
    for round_, elements in enumerate([4, 100, 1, 33, 8]):
        assert table.counters[2] == (SLOTS + round_ % SLOTS if round_ else 0)
        lamport_rs.all_reduce(torch.ones(elements), workspace)
        region_bytes = -(-elements * 4 // LINE_BYTES) * LINE_BYTES
        assert table.extents.tolist() == [region_bytes * me.world_size, COMM_SIZE]


def test_operations_keep_slot_index_and_extent_in_the_table(ranks_of):
    ranks_of(2).run(watch_the_control_words)


def run_foreign_kernel(me: Rank, rounds: int) -> None:
    workspace = me.workspace(COMM_SIZE)
    table = Table(workspace.workspace, me.world_size)
    most = COMM_SIZE // 4 // me.world_size
    for round_ in range(rounds):
        elements = int(np.random.default_rng(round_).integers(1, most + 1))
        inputs = [random_tensor((elements,), torch.float32, round_, rank) for rank in range(me.world_size)]
        for each in inputs:
            each[:: 1 + round_ % 3] = -0.0
        total = lamport_all_reduce(table, me.rank, inputs[me.rank].numpy())
        check_same_bits(torch.from_numpy(total), rounded_sum(inputs), f"round {round_}")


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_kernel_that_knows_only_the_table_works(ranks_of, world_size):
    ranks_of(world_size).run(run_foreign_kernel, 150)


def find_foreign_control_words(me: Rank, slot: int, extent: int) -> None:
    """As a kernel leaves them that counts its slots or its extent in another way."""
    workspace = me.workspace(COMM_SIZE, timeout=5)
    lamport_rs.all_reduce(torch.ones(4), workspace)
    table = Table(workspace.workspace, me.world_size)
    table.counters[2], table.extents[0] = slot, extent
    found = f"slot index {slot} and extent to clear {extent}, but 4 and {LINE_BYTES * me.world_size} were expected"
    for text in (found, "serves either foreign kernels or the package's own operations"):
        with pytest.raises(lamport_rs.LamportError, match=text):
            lamport_rs.all_reduce(torch.ones(4), workspace)


@pytest.mark.parametrize(
    ("slot", "extent"),
    [(3, 128), (-1, 128), (1 << 30, 128), (1, 33), (1, -32), (1, COMM_SIZE + 32), (1, 1 << 62), (2, 64), (2, 128)],
)
def test_control_words_that_a_foreign_kernel_left_are_an_error(ranks_of, slot, extent):
    ranks_of(2).run(find_foreign_control_words, slot, extent)


def share_memory(me: Rank) -> None:
    workspace = me.workspace(COMM_SIZE)
    tensor = workspace.workspace
    assert workspace.workspace is tensor
    address = torch.from_dlpack(workspace._core.table()).data_ptr()
    assert tensor.data_ptr() == address, "the table was copied"
    table = Table(tensor, me.world_size)
    assert torch.from_dlpack(workspace._core.table())[-1] == table.extents.__array_interface__["data"][0]


def test_the_tensor_is_the_table_and_not_a_copy():
    ThreadRanks(2).run(share_memory)


def outlive_the_workspace(me: Rank, way: str) -> None:
    """A kernel that is given the table may still be running when the workspace goes."""
    workspace = me.workspace(COMM_SIZE)
    tensor = workspace.workspace
    expected = tensor.clone()
    lamport_rs.all_reduce(torch.ones(8), workspace)
    if way == "cleanup":
        workspace.cleanup()
    del workspace
    gc.collect()
    dist.barrier()
    assert torch.equal(tensor, expected)
    table = Table(tensor, me.world_size)
    assert table.comm_size == COMM_SIZE
    for peer in range(me.world_size):
        for index in range(SLOTS):
            table.slot(peer, index)[me.rank] = me.rank
    dist.barrier()
    for index in range(SLOTS):
        assert table.slot(me.rank, index)[: me.world_size].tolist() == list(range(me.world_size))
    view = tensor[2:]
    del tensor
    gc.collect()
    assert torch.equal(view, expected[2:]), "a view does not keep the table"


@pytest.mark.parametrize("way", ["cleanup", "garbage collection"])
def test_the_tables_memory_lives_as_long_as_the_tensor(ranks_of, way):
    ranks_of(3).run(outlive_the_workspace, way)


def use_buffers(me: Rank) -> None:
    size = 100_000
    buffer = lamport_rs.IpcBuffer(me.rank, me.world_size, size, device=me.device)
    addresses = buffer.serialize()
    assert addresses == buffer.peer_ptrs
    assert addresses[me.rank] == buffer.local_ptr
    words = [memory_at(address, size // 4, np.uint32) for address in addresses]
    assert not words[me.rank].any(), "the buffer is not filled with zeros"
    dist.barrier()
    for peer in range(me.world_size):
        words[peer][me.rank] = 100 + me.rank
        words[peer][-1 - me.rank] = 200 + me.rank
    dist.barrier()
    assert words[me.rank][: me.world_size].tolist() == [100 + rank for rank in range(me.world_size)]
    assert words[me.rank][-1] == 200
    buffer.cleanup()
    buffer.cleanup()
    with pytest.raises(lamport_rs.LamportError, match="cleaned up"):
        buffer.local_ptr  # noqa: B018


def test_buffers_are_plain_memory_that_all_ranks_reach(ranks_of):
    ranks_of(3).run(use_buffers)


def describe(me: Rank) -> None:
    with me.workspace(COMM_SIZE) as workspace:
        found = (workspace.rank, workspace.world_size, workspace.comm_size, workspace.device, workspace.backend)
        assert found == (me.rank, me.world_size, COMM_SIZE, me.device, "host")
        assert repr(workspace) == (
            f'LamportWorkspace(rank={me.rank}, world_size=2, comm_size={COMM_SIZE}, device="cpu", backend="host")'
        )
    with pytest.raises(lamport_rs.LamportError, match="cleaned up"):
        lamport_rs.all_reduce(torch.ones(4), workspace)


def test_a_workspace_describes_itself_and_is_a_context_manager():
    ThreadRanks(2).run(describe)
