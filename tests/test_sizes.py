"""How large a workspace must be, and tensors that are longer than its slots."""

from collections.abc import Callable, Sequence

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError, LamportMismatchError, LamportSizeError, LamportWorkspace
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


LONG = 3 * COMM_SIZE + 24
"""Bytes of tensors for which slots of `COMM_SIZE` are far too small, and which end amid a vector."""


def reduce_in_chunks(me: Rank, dtype: torch.dtype) -> None:
    """Sums and norms through slots that are too small have the bits of those that are not."""
    small, large = me.workspace(COMM_SIZE, timeout=20), me.workspace(1 << 20, timeout=20)
    sums = [random_tensor((LONG // dtype.itemsize,), dtype, 1, rank) for rank in range(me.world_size)]
    rows = random_tensor((41, 96), dtype, 2, me.rank)
    residual, weight = random_tensor((41, 96), dtype, 3), random_tensor((96,), dtype, 4)
    for algorithm in ("auto", "one_shot", "two_shot"):
        total = lamport_rs.all_reduce(sums[me.rank], small, algorithm=algorithm)
        check_same_bits(total, rounded_sum(sums), algorithm)
        in_place = sums[me.rank].clone()
        assert lamport_rs.all_reduce(in_place, small, in_place, algorithm=algorithm) is in_place
        check_same_bits(in_place, rounded_sum(sums), f"{algorithm} in place")
        strided = lamport_rs.all_reduce(sums[me.rank][::2], small, algorithm=algorithm)
        check_same_bits(strided, rounded_sum([each[::2].contiguous() for each in sums]), f"{algorithm}, strided")
    calls: dict[str, Callable[[LamportWorkspace], Sequence[torch.Tensor]]] = {
        "norm": lambda w: lamport_rs.all_reduce_rms_norm(rows, residual, weight, w),
        "norm without a residual": lambda w: lamport_rs.all_reduce_rms_norm(rows, None, weight, w),
        "a norm of one row": lambda w: lamport_rs.all_reduce_rms_norm(
            random_tensor((1, 4096), dtype, 5, me.rank), None, torch.ones(4096, dtype=dtype), w
        ),
        "MiniMax": lambda w: [
            lamport_rs.minimax_allreduce_rms(rows.repeat(60, 1), weight, w, me.rank, me.world_size, 1e-6)
        ],
        "MiniMax Q and K": lambda w: lamport_rs.minimax_allreduce_rms_qk(
            rows.repeat(60, 1), weight[:64], weight[:16], w, 64, 16, me.rank, me.world_size, 1e-6
        ),
    }
    for name, call in calls.items():
        for found, expected in zip(call(small), call(large), strict=True):
            check_same_bits(found, expected, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_longer_than_the_slots_has_the_same_bits(ranks_of, world_size, dtype):
    if world_size == 1:
        ThreadRanks(1).run(reduce_in_chunks, dtype)
    else:
        ranks_of(world_size).run(reduce_in_chunks, dtype)


def compile_a_long_sum(me: Rank) -> None:
    workspace = me.workspace(COMM_SIZE, timeout=20)
    table = workspace.workspace
    inputs = [random_tensor((41, 96), torch.bfloat16, 1, rank) for rank in range(me.world_size)]
    weight = torch.ones(96, dtype=torch.bfloat16)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return lamport_rs.all_reduce(x, table), *lamport_rs.all_reduce_rms_norm(x, None, weight, table)

    total, normalised, residual = function(inputs[me.rank])
    check_same_bits(total, rounded_sum(inputs))
    check_same_bits(residual, rounded_sum(inputs))
    check_same_bits(normalised, lamport_rs.all_reduce_rms_norm(inputs[me.rank], None, weight, workspace)[0])


def test_a_long_sum_and_a_norm_without_a_residual_are_compiled_in_one_graph(ranks_of):
    ranks_of(2).run(compile_a_long_sum)


def differ_in_length(me: Rank) -> None:
    """Ranks hear of it before the first chunk has a result."""
    workspace, out = me.workspace(COMM_SIZE, timeout=20), torch.full((LONG,), torch.nan)
    with pytest.raises(
        LamportMismatchError, match=rf"rank {me.rank} runs operation 1, all_reduce of {LONG - me.rank} "
    ):
        lamport_rs.all_reduce(torch.ones(LONG - me.rank), workspace, out[me.rank :])
    assert out.isnan().all()


def differ_in_the_residual(me: Rank) -> None:
    workspace, rows = me.workspace(COMM_SIZE, timeout=20), torch.ones(4, 8)
    with pytest.raises(LamportMismatchError):
        lamport_rs.all_reduce_rms_norm(rows, None if me.rank else rows, torch.ones(8), workspace)


@pytest.mark.parametrize("differ", [differ_in_length, differ_in_the_residual])
def test_ranks_that_differ_in_a_long_tensor_or_a_residual_all_hear_of_it(differ):
    ThreadRanks(2).run(differ)


def ask_for_too_much(me: Rank) -> None:
    workspace = me.workspace(16, timeout=10)
    with pytest.raises(LamportSizeError, match=rf"comm_size is 16; .*comm_size={me.world_size * 16} or more") as caught:
        lamport_rs.all_reduce(torch.ones(8), workspace)
    assert isinstance(caught.value, LamportError)
    with pytest.raises(LamportError) as caught:
        lamport_rs.all_reduce(torch.ones(8).int(), workspace)
    assert not isinstance(caught.value, LamportSizeError), "a dtype is no matter of size"


def test_slots_without_room_for_a_vector_of_every_rank_are_an_error_that_names_the_size():
    ThreadRanks(2).run(ask_for_too_much)


def sum_with_room_for_one_shot_only(me: Rank) -> None:
    workspace = me.workspace(16 * me.world_size, timeout=20, two_shot_from=64)
    for elements in (8, 4096):
        inputs = [random_tensor((elements,), torch.float16, rank) for rank in range(me.world_size)]
        assert workspace.supports(inputs[0])
        check_same_bits(lamport_rs.all_reduce(inputs[me.rank], workspace), rounded_sum(inputs))


def test_one_shot_is_taken_where_the_slots_have_no_room_for_two():
    ThreadRanks(3).run(sum_with_room_for_one_shot_only)


def write_twice(me: Rank) -> None:
    workspace, rows = me.workspace(COMM_SIZE, timeout=20), torch.ones(4, 8)
    table, out = workspace.workspace, torch.empty(4, 8)

    def function(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return lamport_rs.all_reduce_rms_norm(x, None, x[0], table, out=out, residual_out=out)[0]

    with pytest.raises(Exception, match="out overlaps residual_out"):
        torch.compile(function, backend="eager", fullgraph=True)(rows, out)


def test_a_compiled_call_refuses_one_tensor_for_both_outputs(ranks_of):
    ranks_of(2).run(write_twice)
