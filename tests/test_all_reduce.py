"""all_reduce: the float32 sum in rank order, rounded once, the same bits on every rank."""

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import DTYPES, check_same_bits, digest, float32_sum, random_tensor, rounded_sum

SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1023, 1024, 1025, 4095, 4096, 4097, 16385, 70001]
SHAPES = [(), (0, 7), (3, 5, 7), (2, 1, 4, 9), (1,) * 8, *[(size,) for size in SIZES]]
LARGE_BYTES = 3 << 20
WORLD_SIZES = [2, 3, 4, 8, 16]


def reduce_shapes(me: Rank, shapes, dtype: torch.dtype, seed: int) -> list[str]:
    """Sum random tensors, into poisoned outputs and in place; returns what this rank got."""
    largest = max(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
    workspace = me.workspace(workspace_bytes(largest, me.world_size))
    digests = []
    for index, shape in enumerate(shapes):
        inputs = [random_tensor(shape, dtype, seed, index, rank) for rank in range(me.world_size)]
        expected, own = rounded_sum(inputs), inputs[me.rank]
        before, out = own.clone(), torch.full_like(own, torch.nan)
        assert lamport_rs.all_reduce(own, workspace, out=out) is out, "out is not what was returned"
        check_same_bits(out, expected, f"{dtype} {shape}")
        check_same_bits(own, before, f"the input of {dtype} {shape}")
        check_same_bits(lamport_rs.all_reduce(own, workspace), expected, f"{dtype} {shape}, allocated")
        for algorithm in ("auto", "one_shot"):
            positional = torch.full_like(own, torch.nan)
            assert lamport_rs.all_reduce(own, workspace, positional, algorithm=algorithm) is positional
            check_same_bits(positional, expected, f"{dtype} {shape}, {algorithm}")
        lamport_rs.all_reduce(own, workspace, out=own)
        check_same_bits(own, expected, f"{dtype} {shape}, in place")
        digests.append(digest(out))
    return digests


def workspace_bytes(message_bytes: int, world_size: int) -> int:
    return lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(max(message_bytes, 1), world_size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_shape_is_summed_in_rank_order_and_rounded_once(ranks_of, world_size, dtype):
    shapes = SHAPES if world_size < 16 else SHAPES[::2]
    digests = ranks_of(world_size).run(reduce_shapes, shapes, dtype, world_size)
    assert all(each == digests[0] for each in digests)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_a_tensor_of_many_chunks_is_summed_like_a_small_one(ranks_of, world_size, dtype):
    elements = (LARGE_BYTES if world_size < 16 else LARGE_BYTES // 8) // dtype.itemsize + 3
    digests = ranks_of(world_size).run(reduce_shapes, [(elements,)], dtype, 99)
    assert all(each == digests[0] for each in digests)


def test_the_random_inputs_tell_rank_order_from_other_orders():
    inputs = [random_tensor((1000,), torch.float32, 1, rank) for rank in range(3)]
    reverse = float32_sum(inputs[::-1])
    assert not torch.equal(float32_sum(inputs), reverse)


def repeat_one_sum(me: Rank) -> set[str]:
    workspace = me.workspace()
    tensor = random_tensor((5000,), torch.bfloat16, me.rank)
    return {digest(lamport_rs.all_reduce(tensor, workspace)) for _ in range(20)}


def test_the_same_inputs_give_the_same_bits_on_every_run(ranks_of):
    digests = ranks_of(4).run(repeat_one_sum)
    assert len(set.union(*digests)) == 1


def sum_through_operator(me: Rank) -> None:
    workspace = me.workspace()
    for dtype in DTYPES:
        inputs = [random_tensor((3, 40), dtype, rank) for rank in range(me.world_size)]
        for table in (workspace.workspace, workspace):
            check_same_bits(lamport_rs.all_reduce(inputs[me.rank], table), rounded_sum(inputs), "function")
        for arguments in ((), ("auto",), ("one_shot",)):
            operator = torch.ops.lamport_rs.all_reduce(inputs[me.rank], workspace.workspace, *arguments)
            check_same_bits(operator, rounded_sum(inputs), f"operator with {arguments}")


def test_table_and_operator_do_the_same_as_workspace_and_function(ranks_of):
    ranks_of(2).run(sum_through_operator)


def reduce_in_an_inner_dimension(me: Rank) -> None:
    """A contiguous slice of a larger tensor: its neighbours are left alone, beyond a partial vector too."""
    workspace = me.workspace()
    for count in (1, 3, 4, 5, 13):
        memory = torch.full((64,), 7.0)
        inner = memory[16 : 16 + count]
        inner.fill_(me.rank + 1.0)
        lamport_rs.all_reduce(inner, workspace, out=inner)
        expected = torch.full((64,), 7.0)
        expected[16 : 16 + count] = sum(range(1, me.world_size + 1))
        check_same_bits(memory, expected, f"{count} elements")


def test_nothing_beyond_the_output_is_written(ranks_of):
    ranks_of(3).run(reduce_in_an_inner_dimension)
