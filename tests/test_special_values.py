"""Values that look like the sentinel, or that compare oddly: bits decide, never floats."""

import lamport_rs
import pytest
import torch
from ranks import Rank
from reductions import ALGORITHMS
from reference import DTYPES, SENTINEL, check_same_bits, digest, rounded_sum, words_of
from special_words import WORDS, contributions_of, contributions_to_the_sentinel, words


def exchange_pattern(me: Rank, dtype: torch.dtype, pattern: int) -> list[str]:
    workspace = me.workspace()
    digests = []
    for inputs in contributions_of(pattern, dtype, me.world_size):
        # Four times, so that every slot is used and cleared.
        for _ in range(4):
            total = lamport_rs.all_reduce(inputs[me.rank], workspace)
            check_same_bits(total, rounded_sum(inputs), f"{pattern:#x}")
        digests.append(digest(total))
    return digests


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", WORDS.values(), ids=WORDS.keys())
def test_every_bit_pattern_arrives_and_is_reduced_alike_on_all_ranks(ranks_of, pattern, dtype):
    digests = ranks_of(3).run(exchange_pattern, dtype, pattern)
    assert all(each == digests[0] for each in digests)


def exchange_all_16_bit_pairs(me: Rank, dtype: torch.dtype) -> str:
    """Every 16-bit value beside each zero, from rank 0; sentinel words from the others."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    zero, minus_zero = torch.zeros_like(every), torch.full_like(every, -(2**15))
    pairs = torch.stack([every, zero, every, minus_zero, zero, every, minus_zero, every], dim=1).reshape(-1)
    inputs = [pairs.view(dtype)]
    inputs += [words([0x80000000], dtype).repeat(pairs.numel() // 2)] * (me.world_size - 1)
    total = lamport_rs.all_reduce(inputs[me.rank], me.workspace(pairs.numel() * 2 * me.world_size))
    check_same_bits(total, rounded_sum(inputs))
    return digest(total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_value_arrives_in_either_half_of_a_word(ranks_of, dtype):
    digests = ranks_of(2).run(exchange_all_16_bit_pairs, dtype)
    assert digests[0] == digests[1]


def check_nans(*results: torch.Tensor) -> None:
    """All of them are the NaN of GPUs."""
    for each in results:
        bits = each.contiguous().view(torch.int32 if each.dtype == torch.float32 else torch.int16)
        assert bool((bits == (0x7FFFFFFF if each.dtype == torch.float32 else 0x7FFF)).all()), each


def add_nans(me: Rank) -> None:
    """Of all signs and payloads, from one rank or from all, alone or among many; infinities of both signs."""
    workspace = me.workspace()
    for dtype in DTYPES:
        patterns = [0x7FC17FC1, 0xFFD5FFD5, 0x7FFFFFFF, 0xFFFFFFFF] + [0x7F800001] * (dtype == torch.float32)
        nans = words(patterns, dtype)
        nans = nans[nans.isnan()]
        for count in (1, 4, 1023, 9000):
            rows = nans.repeat(count)
            for own in (rows, rows.roll(me.rank), rows if me.rank == 0 else torch.zeros_like(rows)):
                for algorithm in ALGORITHMS:
                    check_nans(lamport_rs.all_reduce(own, workspace, algorithm=algorithm))
            infinities = torch.full_like(rows, torch.inf if me.rank == 0 else -torch.inf)
            check_nans(*([lamport_rs.all_reduce(infinities, workspace)] * (me.world_size > 1)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_nan_of_a_sum_has_the_same_bits(ranks_of, world_size):
    ranks_of(world_size).run(add_nans)


def normalise_and_quantise_nans(me: Rank) -> None:
    workspace = me.workspace()
    table, own = workspace.workspace, (me.rank, me.world_size, 1e-6)
    for dtype in DTYPES:
        rows = torch.ones(3, 128, dtype=dtype)
        rows.view(torch.int32)[:, me.rank] = -1 - me.rank
        weight, plain = torch.ones(128, dtype=dtype), torch.ones(3, 128, dtype=dtype)
        out, residual_out = lamport_rs.all_reduce_rms_norm(rows, None, weight, workspace)
        check_nans(out, residual_out[:, : 4 // dtype.itemsize])
        residual = torch.full_like(plain, torch.nan).neg()
        check_nans(*lamport_rs.all_reduce_rms_norm(plain, residual, weight, workspace))
        check_nans(lamport_rs.minimax_allreduce_rms(rows, weight, table, *own))
        if dtype == torch.float32:
            continue
        for quant_format in ("fp8_token", "fp8_group"):
            codes, scales, total = lamport_rs.all_reduce_quant(rows, workspace, quant_format, with_sum=True)
            check_nans(scales, total[:, : 4 // dtype.itemsize])
            assert bool((codes.view(torch.uint8) == 0x7F).all())
        index, weights = torch.tensor([[0], [9], [-1]], dtype=torch.int32), torch.ones(3, 1)
        finalised = lamport_rs.moe_finalize_all_reduce(rows, index, weights, workspace)
        check_nans(finalised[0, : 4 // dtype.itemsize], finalised[1])


def test_nans_of_norms_and_of_their_scales_have_the_same_bits_too(ranks_of):
    ranks_of(2).run(normalise_and_quantise_nans)


def send_sentinels(me: Rank, dtype: torch.dtype) -> None:
    """Not one word is stored as it is, yet all arrive: as +0."""
    workspace = me.workspace(3 << 20)
    for count in (1, 7, 16, 5000, 200_000):
        sentinels = words([0x80000000], dtype).repeat(count)
        total = lamport_rs.all_reduce(sentinels, workspace)
        assert not total.view(torch.int32).any(), "a contribution of sentinels is not +0.0"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sentinel_words_arrive_as_positive_zeros(ranks_of, dtype):
    ranks_of(2).run(send_sentinels, dtype)


def sum_to_sentinels(me: Rank, dtype: torch.dtype) -> None:
    workspace = me.workspace()
    inputs = contributions_to_the_sentinel(dtype, me.world_size)
    for each in inputs:
        assert (words_of(each) != SENTINEL).all(), "a contribution is a sentinel itself"
    total = lamport_rs.all_reduce(inputs[me.rank], workspace)
    assert not total.view(torch.int32).any(), "a sum that is a sentinel is not +0.0"
    rows, zeros = inputs[me.rank].view(-1, 8), torch.zeros(625, 8, dtype=dtype)
    lower = torch.tensor([0.0, -0.0], dtype=dtype).repeat(4)
    for residual in (zeros, lower.expand(625, 8).contiguous()):
        _, residual_out = lamport_rs.all_reduce_rms_norm(rows, residual, torch.ones(8, dtype=dtype), workspace)
        assert not residual_out.view(torch.int32).any(), "a sum with the residual that is a sentinel is not +0.0"


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_sums_that_are_sentinel_words_become_positive_zeros(ranks_of, world_size, dtype):
    ranks_of(world_size).run(sum_to_sentinels, dtype)
