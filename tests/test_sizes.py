"""How large a workspace must be, and what happens to tensors that are too large for it."""

import re

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError, LamportSizeError, LamportWorkspace
from ranks import Rank, ThreadRanks
from reference import check_same_bits, random_tensor, rounded_sum

COMM_SIZE = 4096


def round_up_16(size: int) -> int:
    return -(-size // 16) * 16


def slot_of_two_shot(size: int, world_size: int) -> int:
    """Every rank's contribution to a shard, and its sums of one, both in whole vectors."""
    vectors = round_up_16(size) // 16
    return 2 * -(-vectors // world_size) * 16 * world_size


def slot_of_rows(size: int, world_size: int) -> int:
    """Likewise for the rows that take most of those that two-shot can have, each of whole vectors."""
    vectors = size // 16
    shares = [-(-rows // world_size) * (vectors // rows) for rows in range(world_size, min(vectors, 1000) + 1)]
    return 2 * max(shares, default=0) * 16 * world_size


@pytest.mark.parametrize("world_size", range(2, 17))
def test_the_size_for_an_all_reduce_is_the_smallest_that_does_for_any_algorithm(world_size):
    for size in [*range(1, 600), 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, (3 << 30) + 5]:
        slots = [world_size * round_up_16(size), slot_of_two_shot(size, world_size), slot_of_rows(size, world_size)]
        assert LamportWorkspace.compute_comm_size_for_all_reduce(size, world_size) == max(slots), f"{size} bytes"


def test_but_for_tiny_tensors_it_is_that_of_one_shot():
    sizes = {size: LamportWorkspace.compute_comm_size_for_all_reduce(size, 4) for size in (1, 16, 17, 32, 33, 1 << 20)}
    # Of a single vector, a shard is a vector too: contribution and sum take two.
    assert sizes == {1: 128, 16: 128, 17: 128, 32: 128, 33: 192, 1 << 20: 4 << 20}


def use_the_computed_size(me: Rank) -> None:
    for elements in (1, 8, 9, 100, 5000):
        inputs = [random_tensor((elements,), torch.bfloat16, elements, rank) for rank in range(me.world_size)]
        size = LamportWorkspace.compute_comm_size_for_all_reduce(2 * elements, me.world_size)
        with me.workspace(size) as workspace:
            check_same_bits(lamport_rs.all_reduce(inputs[me.rank], workspace), rounded_sum(inputs))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_computed_size_serves_the_tensor_it_was_computed_for(world_size):
    ThreadRanks(world_size).run(use_the_computed_size)


def too_large(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(COMM_SIZE // dtype.itemsize // 2 + 8, dtype=dtype).view(-1, 8)


def ask_for_too_much(me: Rank) -> None:
    rows, weight, workspace = too_large(), torch.ones(8), me.workspace(COMM_SIZE, timeout=10)
    calls = [
        lambda: lamport_rs.all_reduce(rows, workspace),
        lambda: lamport_rs.all_reduce(rows, workspace, algorithm="one_shot"),
        lambda: torch.ops.lamport_rs.all_reduce(rows, workspace.workspace),
        lambda: lamport_rs.all_reduce_rms_norm(rows, torch.zeros_like(rows), weight, workspace),
        lambda: lamport_rs.minimax_allreduce_rms(torch.ones(1024, 8), weight, workspace, me.rank, me.world_size, 1e-6),
    ]
    for call in calls:
        with pytest.raises(LamportSizeError, match=r"comm_size is 4096; .*comm_size=\d+ or more") as caught:
            call()
        assert isinstance(caught.value, LamportError)
    with pytest.raises(LamportError) as caught:
        lamport_rs.all_reduce(rows.int(), workspace)
    assert not isinstance(caught.value, LamportSizeError), "a dtype is no matter of size"
    needed = int(re.search(r"comm_size=(\d+) or more", str(_refusal(rows, workspace)))[1])
    assert needed == me.world_size * rows.nbytes
    check_same_bits(lamport_rs.all_reduce(rows[:8], workspace), rows[:8] * me.world_size, "the next sum")


def _refusal(rows: torch.Tensor, workspace: LamportWorkspace) -> LamportSizeError:
    with pytest.raises(LamportSizeError) as caught:
        lamport_rs.all_reduce(rows, workspace)
    return caught.value


def test_what_is_too_large_is_an_error_of_its_own_that_names_the_size():
    ThreadRanks(2).run(ask_for_too_much)


def fall_back(me: Rank, dtype: torch.dtype) -> None:
    """Sums of small integers are exact in any order and however often they are rounded."""
    workspace = me.workspace(COMM_SIZE, timeout=10)
    large = too_large(dtype) * (me.rank + 1)
    before, expected = large.clone(), too_large(dtype) * sum(range(1, me.world_size + 1))
    check_same_bits(lamport_rs.all_reduce(large, workspace, fallback=dist.group.WORLD), expected, "allocated")
    out = torch.full_like(large, torch.nan)
    assert lamport_rs.all_reduce(large, workspace, out, fallback=dist.group.WORLD) is out
    check_same_bits(out, expected, "into out")
    check_same_bits(large, before, "the input")
    assert lamport_rs.all_reduce(large, workspace, out=large, fallback=dist.group.WORLD) is large
    check_same_bits(large, expected, "in place")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_tensor_too_large_for_the_workspace_goes_to_the_fallback(ranks_of, dtype):
    ranks_of(3).run(fall_back, dtype)


class Refuses(dist.ProcessGroup):
    """A group that nothing can be done with: using it fails."""


def stay_with_the_workspace(me: Rank) -> None:
    """The fallback has no part in what fits, nor in what neither can take."""
    workspace = me.workspace(COMM_SIZE, timeout=10)
    inputs = [random_tensor((100,), torch.bfloat16, rank) for rank in range(me.world_size)]
    found = lamport_rs.all_reduce(inputs[me.rank], workspace, fallback=Refuses(0, 2))
    check_same_bits(found, rounded_sum(inputs))
    with pytest.raises(LamportError, match=r"input is torch\.int32"):
        lamport_rs.all_reduce(too_large().int(), workspace, fallback=Refuses(0, 2))


def test_what_fits_does_not_go_to_the_fallback():
    ThreadRanks(2).run(stay_with_the_workspace)
