"""all_reduce on GPUs: the bits of the float32 sum in rank order, by either algorithm, and those of the host."""

from itertools import product

import lamport_rs
import pytest
import torch
from ranks import Rank
from reductions import ALGORITHMS, check_guard_elements, comm_size_for, contributions, guarded
from reference import DTYPES, check_same_bits, digest, rounded_sum
from special_words import WORDS, contributions_of, contributions_to_the_sentinel, words
from worlds import GROUP_SIZES

MIB = 1 << 20
VECTOR_BYTES = 16
MOST_BYTES = 9 * MIB
MULTIPROCESSORS = 132
"""Of an H200: that the sizes below are boundaries is so there, and that they are right is so everywhere."""


def boundaries(world_size: int) -> list[int]:
    """Bytes at which the plans of `rust/kernels/src/plan/all_reduce.rs` change."""
    warp, block = 32 * VECTOR_BYTES, 128 * VECTOR_BYTES
    two_shot_from = {2: 2375 << 10, 3: 296 << 10, 4: 160 << 10}[world_size]
    # Of two-shot, small blocks become large ones.
    larger_blocks = 3 * MIB if world_size == 2 else world_size * MIB
    # Of one-shot: the blocks that there are at least; blocks of another size, of two ranks.
    # One of them has no data.
    least_blocks, other_blocks = 31 * block, [192 << 10, 448 << 10]
    # What all blocks that run at once sum in one round.
    one_shot_round = (MULTIPROCESSORS * (9 if world_size == 2 else 6) - 1) * block
    threads = 2048 if world_size == 2 else 1024
    two_shot_round = world_size * (MULTIPROCESSORS * threads // 512 - 1) * 512 * VECTOR_BYTES
    # Of two-shot in phases: so many warps of a shard per block, and the most that its grid takes.
    shard_warps = [3 * MULTIPROCESSORS * warps // 5 for warps in (1, 2, 3)] + [4 * MULTIPROCESSORS]
    phased = [world_size * warps * warp for warps in shard_warps]
    phased_round = world_size * (MULTIPROCESSORS * 1024 // (32 * (world_size - 1)) - 1) * warp
    switches = [two_shot_from, larger_blocks, least_blocks, world_size * least_blocks, *other_blocks]
    return [warp, block, world_size * block, *switches, *phased, phased_round, one_shot_round, two_shot_round]


def element_counts(world_size: int, dtype: torch.dtype) -> list[int]:
    """Up to a few vectors, around each boundary, and some of several rounds."""
    vector = VECTOR_BYTES // dtype.itemsize
    few = [1, 2, 3, vector - 1, vector, vector + 1, 2 * vector + 3, world_size * vector - 1, world_size * vector + 1]
    around = [size // dtype.itemsize + step for size in boundaries(world_size) for step in (-1, 0, 1)]
    many = [size // dtype.itemsize for size in (3 * MIB // 2, 23 * MIB // 10, 43 * MIB // 10 + 6, 8 * MIB, MOST_BYTES)]
    return sorted({*few, *around, *many})


def reduce_in_every_way(me: Rank, workspace, inputs: list[torch.Tensor], algorithm: str, what: str) -> None:
    """Into an output of its own, allocated, in place; with the workspace and its table."""
    own, expected, table = inputs[me.rank], rounded_sum(inputs), workspace.workspace
    before = own.clone()
    out, memory = guarded(own.shape, own.dtype, me.device)
    assert lamport_rs.all_reduce(own, workspace, out, algorithm=algorithm) is out, "out is not what was returned"
    check_same_bits(out, expected, what)
    check_guard_elements(memory, what)
    check_same_bits(lamport_rs.all_reduce(own, table, algorithm=algorithm), expected, f"{what}, allocated")
    check_same_bits(torch.ops.lamport_rs.all_reduce(own, table, algorithm), expected, f"{what}, operator")
    check_same_bits(own, before, f"the input of {what}")
    lamport_rs.all_reduce(own, workspace, out=own, algorithm=algorithm)
    check_same_bits(own, expected, f"{what}, in place")
    own.copy_(before)


def reduce_all_sizes(me: Rank, dtype: torch.dtype) -> None:
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    for count in element_counts(me.world_size, dtype):
        inputs = contributions(me, (count,), dtype, count)
        for algorithm in ("auto", *ALGORITHMS):
            reduce_in_every_way(me, workspace, inputs, algorithm, f"{algorithm}, {count} elements {dtype}")
    workspace.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_every_size_is_summed_in_rank_order_and_rounded_once(ranks_of, world_size, dtype):
    ranks_of(world_size).run(reduce_all_sizes, dtype)


def reduce_every_shape(me: Rank, dtype: torch.dtype) -> None:
    """Without elements too: what follows would notice a slot out of step."""
    workspace = me.workspace()
    for index, shape in enumerate([(), (0, 7), (3, 5, 7), (0,), (2, 1, 4, 9), (1,) * 8, (2, 1, 2, 1, 2, 1, 2, 3)]):
        inputs = contributions(me, shape, dtype, 50, index)
        for algorithm in ("auto", *ALGORITHMS):
            reduce_in_every_way(me, workspace, inputs, algorithm, f"{algorithm}, shape {shape} {dtype}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_tensors_have_any_shape_and_may_be_empty(ranks_of, world_size, dtype):
    ranks_of(world_size).run(reduce_every_shape, dtype)


def reduce_slices(me: Rank, dtype: torch.dtype) -> None:
    """In place and into another slice; around both are elements that must stay, beyond a partial vector too."""
    workspace, elements = me.workspace(), VECTOR_BYTES // dtype.itemsize
    for count in [*range(1, 2 * elements + 2), 127, 1001, 2047]:
        for algorithm in ALGORITHMS:
            what = f"{algorithm}, a slice of {count} elements {dtype}"
            inputs = contributions(me, (count,), dtype, 60, count)
            inner, memory = guarded((count,), dtype, me.device)
            inner.copy_(inputs[me.rank])
            other, other_memory = guarded((count,), dtype, me.device)
            lamport_rs.all_reduce(inner, workspace, other, algorithm=algorithm)
            check_same_bits(inner, inputs[me.rank], f"the input of {what}")
            lamport_rs.all_reduce(inner, workspace, inner, algorithm=algorithm)
            for output in (inner, other):
                check_same_bits(output, rounded_sum(inputs), what)
            for each in (memory, other_memory):
                check_guard_elements(each, what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_nothing_beyond_the_output_is_written(ranks_of, world_size, dtype):
    ranks_of(world_size).run(reduce_slices, dtype)


def special_contributions(me: Rank, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """Every pattern in many places, sums that are sentinels, the limits, and every 16-bit value beside each zero."""
    found = [inputs for pattern in WORDS.values() for inputs in contributions_of(pattern, dtype, me.world_size)]
    limits = torch.finfo(dtype)
    smallest = limits.tiny * limits.eps
    extremes = torch.tensor([limits.max, -limits.max, limits.tiny, smallest, -smallest, 0.0, -0.0, 1.0], dtype=dtype)
    found.append([extremes.roll(rank) for rank in range(me.world_size)])
    found.append([extremes * (-1) ** rank for rank in range(me.world_size)])
    if dtype.itemsize == 2:
        found.append(contributions_to_the_sentinel(dtype, me.world_size))
        every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
        zero, minus_zero = torch.zeros_like(every), torch.full_like(every, -(2**15))
        pairs = torch.stack([every, zero, every, minus_zero, zero, every, minus_zero, every], dim=1).reshape(-1)
        found.append([pairs.view(dtype).roll(2 * rank) for rank in range(me.world_size)])
    return found


def compare_with_the_host(me: Rank, dtype: torch.dtype) -> list[str]:
    comm_size = comm_size_for(me, 2 * MIB)
    workspace, on_the_host = me.workspace(comm_size), me.workspace(comm_size, device="cpu")
    random = [[each.cpu() for each in contributions(me, (count,), dtype, 70)] for count in (1, 13, 5000, 300_001)]
    digests = []
    for index, inputs in enumerate([*random, *special_contributions(me, dtype)]):
        own = inputs[me.rank].to(me.device)
        expected = lamport_rs.all_reduce(inputs[me.rank], on_the_host)
        totals = [lamport_rs.all_reduce(own, workspace, algorithm=algorithm).cpu() for algorithm in ALGORITHMS]
        for algorithm, total in zip(ALGORITHMS, totals, strict=True):
            check_same_bits(total, expected, f"{algorithm} and host, case {index}")
            check_same_bits(total, rounded_sum(inputs), f"{algorithm}, case {index}")
        digests += [digest(total) for total in totals]
    return digests


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_host_and_gpus_give_the_same_bits_on_all_ranks_special_values_included(ranks_of, world_size, dtype):
    digests = ranks_of(world_size).run(compare_with_the_host, dtype)
    assert all(each == digests[0] for each in digests)
    # One and the other algorithm: of NaN too.
    assert digests[0][::2] == digests[0][1::2]


def add_different_nans(me: Rank) -> list[str]:
    """Which bits a NaN has is the processor's choice: every rank must make the same one, by either algorithm."""
    digests, workspace = [], me.workspace()
    for dtype in DTYPES:
        for count in (1, 4, 1023, 9000):
            own = words([0x7FC17FC1 + me.rank * 0x00020002], dtype).repeat(count).to(me.device)
            totals = [lamport_rs.all_reduce(own, workspace, algorithm=algorithm) for algorithm in ALGORITHMS]
            assert bool(totals[0].isnan().any()), "the NaNs were lost"
            check_same_bits(*(total.view(torch.int32) for total in totals), f"NaNs, {count} words {dtype}")
            digests.append(digest(*totals))
    return digests


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_ranks_agree_on_the_bits_of_a_sum_of_different_nans(ranks_of, world_size):
    digests = ranks_of(world_size).run(add_different_nans)
    assert all(each == digests[0] for each in digests)


def send_sentinels(me: Rank, dtype: torch.dtype) -> None:
    """Not one word is stored as it is, yet all arrive: as +0."""
    workspace = me.workspace(comm_size_for(me, MIB))
    for count in (1, 7, 16, 5000, 200_000):
        sentinels = words([0x80000000], dtype).repeat(count).to(me.device)
        for algorithm in ALGORITHMS:
            total = lamport_rs.all_reduce(sentinels, workspace, algorithm=algorithm)
            assert not total.view(torch.int32).any(), "a contribution of sentinels is not +0.0"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_sentinel_words_arrive_as_positive_zeros(ranks_of, world_size, dtype):
    ranks_of(world_size).run(send_sentinels, dtype)


def repeat_sums(me: Rank) -> list[set[str]]:
    """What each size gives, over algorithms and runs."""
    workspace, digests = me.workspace(comm_size_for(me, 2 * MIB)), []
    for count in (3, 1000, 70_001, 1_000_000):
        own = contributions(me, (count,), torch.bfloat16, 80)[me.rank]
        totals = [lamport_rs.all_reduce(own, workspace, algorithm=ALGORITHMS[run % 2]) for run in range(20)]
        digests.append({digest(total) for total in totals})
    return digests


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_the_same_inputs_give_the_same_bits_on_every_rank_and_on_every_run(ranks_of, world_size):
    for found in zip(*ranks_of(world_size).run(repeat_sums), strict=True):
        assert len(set.union(*found)) == 1


def sum_the_largest(me: Rank) -> None:
    """The most bytes that the kernels can count, a partial vector less, and what takes many rounds."""
    most = 1 << 30
    workspace = me.workspace(max(me.world_size, 2) * most + 4096)
    for size, algorithm in product((100 * MIB + 6, most - 14, most), ALGORITHMS):
        own = torch.arange(size // 2, device=me.device, dtype=torch.int32).remainder_(251).to(torch.bfloat16)
        own += me.rank
        total = lamport_rs.all_reduce(own, workspace, algorithm=algorithm)
        # Whole numbers below 2^11, which bfloat16 rounds: as the sum in float32 does.
        ranks = me.world_size
        expected = (own - me.rank).float().mul_(ranks).add_(ranks * (ranks - 1) / 2).to(torch.bfloat16)
        assert torch.equal(total, expected), f"{algorithm} of {size} bytes"
    longer = own.new_ones(most // 2 + 5)
    total = lamport_rs.all_reduce(longer, workspace, longer)
    assert bool((total == me.world_size).all()), "more than one operation can take"
    workspace.synchronize()


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.gpu(2))])
def test_the_largest_tensors_are_summed(ranks_of, world_size):
    ranks_of(world_size).run(sum_the_largest)
