"""all_reduce_rms_norm on GPUs: the exact sum with the residual, and the norm of its rounded rows."""

import lamport_rs
import pytest
import torch
from minimax_rows import WEIGHTS, check_guards, poisoned
from ranks import Rank
from reductions import ALGORITHMS, NormedReduction, comm_size_for, contributions
from reference import (
    DTYPES,
    check_rounding,
    check_same_bits,
    digest,
    random_tensor,
    rms_norm_of_rows,
    rounded_sum_with,
)
from special_words import contributions_to_the_sentinel
from worlds import GROUP_SIZES

EPS = 1e-5
HIDDEN = [8, 1024, 1032, 4096, 7168, 8192, 8200, 16384, 16392]
"""Around the widest row that a block holds in registers: 1024 vectors."""
TOKENS = [1, 2, 3, 4, 5, 7, 8, 33, 128, 300]
"""Fewer than ranks, as many and more; and more than blocks that run at once."""
MANY_TOKENS, NARROW = 4500, 1032
"""Of narrow rows so many blocks run at once that it takes more tokens."""
SETTINGS = [(EPS, 0.0), (0.0, 1.0), (0.0, 0.0), (EPS, 1.0)]
"""eps and weight_bias."""
WAYS = [("out", "residual_out"), ("residual_out", "out"), ("out", None), (None, "out"), (None, "residual_out")]
"""Which output takes the place of the input, and which that of the residual."""
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


def check_both(found, expected, what: str) -> None:
    check_same_bits(found[0], expected[0], f"out, {what}")
    check_same_bits(found[1], expected[1], f"residual_out, {what}")


def normalise_rows(me: Rank, dtype: torch.dtype, weight_dtype: torch.dtype, hidden: int) -> None:
    counts = [*TOKENS, MANY_TOKENS] if hidden <= NARROW else TOKENS
    workspace = me.workspace(comm_size_for(me, max(counts) * hidden * dtype.itemsize))
    for index, tokens in enumerate(counts):
        inputs = contributions(me, (tokens, hidden), dtype, tokens)
        own, operation = inputs[me.rank], NormedReduction.random(me, tokens, hidden, "", dtype, weight_dtype, tokens)
        residual, weight, before = operation.residual, operation.weight, own.clone()
        residual_before = residual.clone()
        rows = rounded_sum_with(residual, inputs)
        for eps, weight_bias in (SETTINGS[index % 4], SETTINGS[(index + 1) % 4]):
            by_algorithm = []
            for algorithm in ALGORITHMS:
                what = f"{algorithm}, {tokens} tokens of {hidden} {dtype}, weight {weight_dtype}, {eps}, {weight_bias}"
                (out, out_memory), (residual_out, residual_memory) = (
                    poisoned(tokens, hidden, dtype, me.device) for _ in range(2)
                )
                arguments = (own, residual, weight, workspace, eps, weight_bias)
                outputs = {"out": out, "residual_out": residual_out}
                found = lamport_rs.all_reduce_rms_norm(*arguments, **outputs, algorithm=algorithm)
                assert found[0] is out, "out is not what was returned"
                assert found[1] is residual_out, "residual_out is not what was returned"
                check_same_bits(residual_out, rows, f"residual_out, {what}")
                check_rounding(out, rms_norm_of_rows(rows, weight, eps, weight_bias), f"out, {what}")
                check_guards(out_memory, f"out, {what}")
                check_guards(residual_memory, f"residual_out, {what}")
                check_same_bits(own, before, f"the input, {what}")
                check_same_bits(residual, residual_before, f"the residual, {what}")
                by_algorithm.append(found)
            check_both(by_algorithm[1], by_algorithm[0], f"two algorithms, {what}")


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_sum_is_exact_and_norm_is_within_the_dtypes_rounding(ranks_of, world_size, dtype, weight_dtype, hidden):
    ranks_of(world_size).run(normalise_rows, dtype, weight_dtype, hidden)


def call_otherwise(me: Rank, dtype: torch.dtype, hidden: int) -> None:
    """Allocated, through the operator, with the table, and with either output in the place of either input."""
    workspace = me.workspace(comm_size_for(me, 33 * hidden * dtype.itemsize))
    for tokens in (1, 5, 33):
        for algorithm in ("auto", *ALGORITHMS):
            operation = NormedReduction.random(me, tokens, hidden, algorithm, dtype, seed=tokens)
            own, residual, weight = operation.rows, operation.residual, operation.weight
            expected, what = operation(workspace), operation.describe()
            operation.check("outputs of their own")
            table = workspace.workspace
            allocated = lamport_rs.all_reduce_rms_norm(own, residual, weight, table, EPS, algorithm=algorithm)
            check_both(allocated, expected, f"allocated, {what}")
            operator = torch.ops.lamport_rs.all_reduce_rms_norm(own, residual, weight, table, EPS, 0.0, algorithm)
            check_both(operator, expected, f"operator, {what}")
            for input_name, residual_name in WAYS:
                places = {input_name: own.clone(), residual_name: residual.clone()}
                operands = places[input_name], places[residual_name], weight, workspace, EPS
                places.pop(None, None)
                found = lamport_rs.all_reduce_rms_norm(*operands, **places, algorithm=algorithm)
                check_both(found, expected, f"{input_name} over input, {residual_name} over residual, {what}")


@pytest.mark.parametrize("hidden", [72, 1024, 8192, 16392])
@pytest.mark.parametrize("dtype", DTYPES, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_outputs_may_take_the_place_of_inputs_and_every_way_to_call_is_the_same(ranks_of, world_size, dtype, hidden):
    ranks_of(world_size).run(call_otherwise, dtype, hidden)


def normalise_odd_shapes(me: Rank) -> None:
    """No rows, one dimension, and many: each followed by an operation that would notice a slot out of step."""
    workspace = me.workspace()
    for index, shape in enumerate([(0, 40), (40,), (0, 3, 40), (2, 3, 5, 40), (1, 1, 40), (1,) * 7 + (40,), (5, 40)]):
        inputs = contributions(me, shape, torch.float16, index)
        residual, weight = (random_tensor(each, torch.float16, 5).to(me.device) for each in (shape, (40,)))
        for algorithm in ("auto", *ALGORITHMS):
            found = lamport_rs.all_reduce_rms_norm(
                inputs[me.rank], residual, weight, workspace, EPS, algorithm=algorithm
            )
            rows = rounded_sum_with(residual, inputs)
            check_same_bits(found[1], rows, f"{shape}, {algorithm}")
            check_rounding(found[0], rms_norm_of_rows(rows, weight, EPS), f"{shape}, {algorithm}")


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_leading_dimensions_are_rows_and_there_may_be_none(ranks_of, world_size):
    ranks_of(world_size).run(normalise_odd_shapes)


def compare_with_the_host(me: Rank, dtype: torch.dtype, weight_dtype: torch.dtype) -> list[str]:
    """The sums are the same bits; the norms differ in the order of their sums of squares."""
    comm_size, digests = comm_size_for(me, 1 << 20), []
    workspace, on_the_host = me.workspace(comm_size), me.workspace(comm_size, device="cpu")
    for tokens, hidden in ((1, 8), (7, 1536), (3, 16392), (40, 2048)):
        for algorithm in ALGORITHMS:
            operation = NormedReduction.random(me, tokens, hidden, algorithm, dtype, weight_dtype, tokens)
            operation.weight_bias = 1.0
            out, residual_out = operation(workspace)
            operands = (each.cpu() for each in (operation.rows, operation.residual, operation.weight))
            expected = lamport_rs.all_reduce_rms_norm(*operands, on_the_host, EPS, 1.0)
            check_same_bits(residual_out.cpu(), expected[1], f"residual_out, {operation.describe()}")
            tolerance = 2 * torch.finfo(dtype).eps + 1e-5
            torch.testing.assert_close(out.cpu(), expected[0], rtol=tolerance, atol=tolerance)
            digests.append(digest(out, residual_out))
    return digests


@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_ranks_get_the_same_bits_and_the_hosts_sums(ranks_of, world_size, dtype, weight_dtype):
    digests = ranks_of(world_size).run(compare_with_the_host, dtype, weight_dtype)
    assert all(each == digests[0] for each in digests)
    assert digests[0][::2] == digests[0][1::2], "the algorithms differ"


def sum_to_sentinels(me: Rank, dtype: torch.dtype) -> None:
    """Words of the sum that look like the sentinel: with two-shot they could not travel."""
    workspace = me.workspace()
    rows = contributions_to_the_sentinel(dtype, me.world_size)[me.rank].view(-1, 8).to(me.device)
    weight, zeros = torch.ones(8, dtype=dtype, device=me.device), torch.tensor([0.0, -0.0], dtype=dtype)
    residual = zeros.repeat(rows.numel() // 2).view(rows.shape).to(me.device)
    for algorithm in ALGORITHMS:
        out, residual_out = lamport_rs.all_reduce_rms_norm(rows, residual, weight, workspace, EPS, algorithm=algorithm)
        assert not residual_out.view(torch.int32).any(), "a sum that is a sentinel is not +0.0"
        assert not out.any(), "the norm of zeros is not zero"


@pytest.mark.parametrize("dtype", DTYPES[1:], **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_sums_that_are_sentinel_words_become_positive_zeros(ranks_of, world_size, dtype):
    ranks_of(world_size).run(sum_to_sentinels, dtype)


def repeat_norms(me: Rank) -> list[set[str]]:
    """What each shape gives, over algorithms and runs."""
    workspace, digests = me.workspace(comm_size_for(me, 5 << 20)), []
    for tokens, hidden in ((1, 4096), (5, 8200), (150, 16384), (600, 2048)):
        found = set()
        for run in range(20):
            operation = NormedReduction.random(me, tokens, hidden, ALGORITHMS[run % 2], seed=hidden)
            found.add(digest(*operation(workspace)))
        digests.append(found)
    return digests


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_the_same_rows_give_the_same_bits_on_every_rank_and_on_every_run(ranks_of, world_size):
    for found in zip(*ranks_of(world_size).run(repeat_norms), strict=True):
        assert len(set.union(*found)) == 1
