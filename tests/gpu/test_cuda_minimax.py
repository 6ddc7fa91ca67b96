"""The MiniMax norms on GPUs, against float64 references: every kernel variant, shape and layout."""

import lamport_rs
import pytest
import torch
from minimax_rows import (
    EPS,
    WEIGHTS,
    Operation,
    check_guards,
    expected_rows,
    poisoned,
    random_rows,
    workspace_for,
)
from ranks import Rank
from reference import check_rounding, check_same_bits, digest
from worlds import WORLD_SIZES

TOKENS = [1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 127, 128, 129, 511, 512, 1000, 2048, 4097, 16384]
MOST_ELEMENTS = 140_000_000
"""Of a matrix: its float64 reference then takes a gigabyte."""
PAIRS = [(8, 8), (24, 8), (3072, 512), (6144, 1024), (1536, 256), (8200, 520), (20_000, 264)]
by_name = {"ids": lambda value: str(value).replace("torch.", "").replace(", ", "-")}


def fitting(width: int) -> list[int]:
    return [tokens for tokens in TOKENS if tokens * width <= MOST_ELEMENTS]


def normalise_matrices(me: Rank, dtype, weight_dtype, width: int) -> None:
    """Contiguous rows, rows that lie apart, and in place."""
    workspace = workspace_for(me, max(TOKENS))
    weight = random_rows(me, (width,), weight_dtype, 7, me.rank)
    for count in fitting(width):
        what = f"{count} tokens of {width} {dtype}, weight {weight_dtype}"
        larger = random_rows(me, (count, width + 24), dtype, count, me.rank)
        strided = larger[:, 8 : 8 + width]
        rows = strided.contiguous()
        settings = (me.rank, me.world_size)
        before = larger.clone()

        out, memory = poisoned(count, width, dtype, me.device)
        assert lamport_rs.minimax_allreduce_rms(rows, weight, workspace, *settings, EPS, out=out) is out
        check_rounding(out, expected_rows(me, rows, weight, EPS), what)
        check_guards(memory, what)

        apart, memory = poisoned(count, width, dtype, me.device)
        lamport_rs.minimax_allreduce_rms(strided, weight, workspace.workspace, *settings, 0.0, out=apart)
        check_rounding(apart, expected_rows(me, rows, weight, 0.0), f"{what}, rows apart")
        check_guards(memory, f"{what}, rows apart")
        check_same_bits(larger, before, f"{what}, the input")

        operator = torch.ops.lamport_rs.minimax_allreduce_rms(strided, weight, workspace.workspace, *settings, EPS)
        check_same_bits(operator, out, f"{what}, operator")
        lamport_rs.minimax_allreduce_rms(rows, weight, workspace, *settings, EPS, out=rows)
        check_same_bits(rows, out, f"{what}, in place")


@pytest.mark.parametrize("width", [8, 24, 1536, 3072, 6144, 8200, 20_000])
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_spread_rows_are_normalised_within_the_dtypes_rounding(ranks_of, world_size, dtype, weight_dtype, width):
    ranks_of(world_size).run(normalise_matrices, dtype, weight_dtype, width)


def normalise_qkv(me: Rank, dtype, weight_dtype, sizes: tuple[int, int]) -> None:
    """Out of a packed qkv that is itself some columns of a larger tensor, so that rows lie apart."""
    q_size, kv_size = sizes
    workspace = workspace_for(me, max(TOKENS))
    weight_q, weight_k = (random_rows(me, (size,), weight_dtype, 8, size, me.rank) for size in sizes)
    for count in fitting(q_size + kv_size):
        what = f"{count} tokens of {sizes} {dtype}, weight {weight_dtype}"
        larger = random_rows(me, (count, q_size + kv_size + 32), dtype, count, me.rank)
        packed = larger[:, 8:-8]
        parts = packed[:, :q_size], packed[:, q_size : q_size + kv_size]
        before = larger.clone()
        for eps, table in ((EPS, workspace), (0.0, workspace.workspace)):
            (q, q_memory), (k, k_memory) = (poisoned(count, size, dtype, me.device) for size in sizes)
            arguments = (packed, weight_q, weight_k, table, q_size, kv_size, me.rank, me.world_size, eps)
            lamport_rs.minimax_allreduce_rms_qk(*arguments, q_out=q, k_out=k)
            check_rounding(q, expected_rows(me, parts[0], weight_q, eps), f"q, {what}")
            check_rounding(k, expected_rows(me, parts[1], weight_k, eps), f"k, {what}")
            check_guards(q_memory, f"q, {what}")
            check_guards(k_memory, f"k, {what}")
            check_same_bits(larger, before, f"qkv, {what}")
        operator = torch.ops.lamport_rs.minimax_allreduce_rms_qk(*arguments)
        check_same_bits(operator[0], q, f"q, {what}, operator")
        check_same_bits(operator[1], k, f"k, {what}, operator")


@pytest.mark.parametrize("sizes", PAIRS, **by_name)
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_q_and_k_of_a_strided_qkv_are_normalised_within_the_dtypes_rounding(
    ranks_of, world_size, dtype, weight_dtype, sizes
):
    ranks_of(world_size).run(normalise_qkv, dtype, weight_dtype, sizes)


def normalise_odd_shapes(me: Rank) -> None:
    """No rows, one dimension, and many: each followed by an operation that would notice a slot out of step."""
    workspace = workspace_for(me, 1024)
    for index, shape in enumerate([(0, 40), (40,), (0, 3, 40), (2, 3, 5, 40), (1, 1, 40), (5, 40)]):
        rows, weight = random_rows(me, shape, torch.float16, index, me.rank), random_rows(me, (40,), torch.float16, 9)
        out = lamport_rs.minimax_allreduce_rms(rows, weight, workspace, me.rank, me.world_size, EPS)
        check_rounding(out, expected_rows(me, rows, weight, EPS), str(shape))
        weights, settings = weight.clone().split([24, 16]), (24, 16, me.rank, me.world_size, EPS)
        weights = [each.clone() for each in weights]
        q, k = lamport_rs.minimax_allreduce_rms_qk(rows, *weights, workspace, *settings)
        check_rounding(q, expected_rows(me, rows[..., :24], weights[0], EPS), f"q of {shape}")
        check_rounding(k, expected_rows(me, rows[..., 24:], weights[1], EPS), f"k of {shape}")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_leading_dimensions_are_rows_and_there_may_be_none(ranks_of, world_size):
    ranks_of(world_size).run(normalise_odd_shapes)


def normalise_the_same(me: Rank) -> list[str]:
    """All ranks have the same rows and weights."""
    workspace, digests = workspace_for(me, 4096), []
    impartial = Rank(0, me.world_size, me.device)
    for tokens in (1, 8, 130, 300, 600, 4096):
        for widths in [(1536,), (20_000,), (1536, 256), (8200, 520)]:
            operation = Operation.random(impartial, tokens, widths, seed=tokens)
            operation.me = me
            results = operation(workspace)
            digests.append(digest(*(result.cpu() for result in results)))
            operation.poison()
            digests.append(digest(*(result.cpu() for result in operation(workspace))))
    return digests


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_same_rows_give_the_same_bits_on_every_rank_and_every_time(ranks_of, world_size):
    digests = ranks_of(world_size).run(normalise_the_same)
    assert all(each == digests[0] for each in digests)
    assert digests[0][::2] == digests[0][1::2]
