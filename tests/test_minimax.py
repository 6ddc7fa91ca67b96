"""The MiniMax norms: rows that are spread over the ranks, alone or as Q and K of a packed qkv."""

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import DTYPES, check_rounding, check_same_bits, mean_of_squares, random_tensor, rms_norm

EPS = 1e-6
TOKENS = [0, 1, 2, 3, 4, 5, 7, 8, 127, 1000]
MOST_TOKENS = 16384
WEIGHTS = [*((dtype, dtype) for dtype in DTYPES), *((dtype, torch.float32) for dtype in DTYPES[1:])]


def minimax_workspace(me: Rank, tokens: int, fused_qk: bool) -> lamport_rs.LamportWorkspace:
    return me.workspace(lamport_rs.LamportWorkspace.compute_comm_size_for_minimax(tokens, me.world_size, fused_qk))


def expected_norm(parts: list[torch.Tensor], weights: list[torch.Tensor], rank: int) -> torch.Tensor:
    return rms_norm(parts[rank], mean_of_squares(parts), weights[rank], EPS)


def normalise_matrices(me: Rank, dtype, weight_dtype, tokens: list[int], width: int) -> None:
    workspace = minimax_workspace(me, max(tokens), fused_qk=False)
    for count in tokens:
        parts = [random_tensor((count, width), dtype, count, rank) for rank in range(me.world_size)]
        weights = [random_tensor((width,), weight_dtype, 7, rank) for rank in range(me.world_size)]
        own, weight, what = parts[me.rank], weights[me.rank], f"{count} tokens of {dtype}, weight {weight_dtype}"
        settings = (me.rank, me.world_size, EPS)
        out = torch.full_like(own, torch.nan)
        assert lamport_rs.minimax_allreduce_rms(own, weight, workspace, *settings, out=out) is out
        check_rounding(out, expected_norm(parts, weights, me.rank), what)
        allocated = lamport_rs.minimax_allreduce_rms(own, weight, workspace, *settings)
        check_same_bits(allocated, out, f"{what}, allocated")
        operator = torch.ops.lamport_rs.minimax_allreduce_rms(own, weight, workspace.workspace, *settings)
        check_same_bits(operator, out, f"{what}, operator")
        lamport_rs.minimax_allreduce_rms(own, weight, workspace, *settings, out=own)
        check_same_bits(own, out, f"{what}, in place")


@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS)
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_spread_rows_are_normalised_within_the_dtypes_rounding(ranks_of, world_size, dtype, weight_dtype):
    ranks_of(world_size).run(normalise_matrices, dtype, weight_dtype, TOKENS, 72)


def test_wide_rows_are_normalised_within_the_same_bound(ranks_of):
    ranks_of(4).run(normalise_matrices, torch.bfloat16, torch.bfloat16, [1, 6], 1536)


def normalise_qkv(me: Rank, dtype, weight_dtype, tokens: list[int], sizes: tuple[int, int, int]) -> None:
    """Out of a packed qkv that is itself some columns of a larger tensor, so that rows lie apart."""
    q_size, kv_size, rest = sizes
    workspace = minimax_workspace(me, max(tokens), fused_qk=True)
    ranks = range(me.world_size)
    weights = [random_tensor((q_size + kv_size,), weight_dtype, 8, rank).split([q_size, kv_size]) for rank in ranks]
    for count in tokens:
        larger = [random_tensor((count, q_size + kv_size + rest + 16), dtype, count, rank) for rank in ranks]
        packed = [each[:, 8 : 8 + q_size + kv_size + rest] for each in larger]
        before, own, what = larger[me.rank].clone(), packed[me.rank], f"{count} tokens of {dtype}"
        arguments = (own, *weights[me.rank], workspace, q_size, kv_size, me.rank, me.world_size, EPS)
        q = torch.full((count, q_size), torch.nan, dtype=dtype)
        k = torch.full((count, kv_size), torch.nan, dtype=dtype)
        lamport_rs.minimax_allreduce_rms_qk(*arguments, q_out=q, k_out=k)
        q_parts = [each[:, :q_size] for each in packed]
        k_parts = [each[:, q_size : q_size + kv_size] for each in packed]
        check_rounding(q, expected_norm(q_parts, [weight[0] for weight in weights], me.rank), f"q, {what}")
        check_rounding(k, expected_norm(k_parts, [weight[1] for weight in weights], me.rank), f"k, {what}")
        check_same_bits(larger[me.rank], before, f"qkv, {what}")
        arguments = (*arguments[:3], workspace.workspace, *arguments[4:])
        for call in (lamport_rs.minimax_allreduce_rms_qk, torch.ops.lamport_rs.minimax_allreduce_rms_qk):
            found = call(*arguments)
            check_same_bits(found[0], q, f"q, {what}, allocated")
            check_same_bits(found[1], k, f"k, {what}, allocated")


@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS)
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_q_and_k_of_a_strided_qkv_are_normalised_within_the_dtypes_rounding(ranks_of, world_size, dtype, weight_dtype):
    ranks_of(world_size).run(normalise_qkv, dtype, weight_dtype, TOKENS, (48, 16, 16))


def test_as_many_tokens_as_the_workspace_is_sized_for_fit(ranks_of):
    ranks_of(2).run(normalise_qkv, torch.bfloat16, torch.float32, [MOST_TOKENS], (16, 8, 8))
    ranks_of(2).run(normalise_matrices, torch.bfloat16, torch.float32, [MOST_TOKENS], 8)


def normalise_dimensions(me: Rank) -> None:
    """More dimensions than two, and none but the columns."""
    workspace = minimax_workspace(me, 64, fused_qk=True)
    for shape in [(2, 3, 5, 40), (40,), (1, 40)]:
        parts = [random_tensor(shape, torch.float16, 5, rank) for rank in range(me.world_size)]
        weights = [random_tensor((40,), torch.float16, 6, rank) for rank in range(me.world_size)]
        arguments = (workspace, me.rank, me.world_size, EPS)
        out = lamport_rs.minimax_allreduce_rms(parts[me.rank], weights[me.rank], *arguments)
        check_rounding(out, expected_norm(parts, weights, me.rank), str(shape))
        # All of the columns as Q and K: each is normalised by itself.
        weight_q, weight_k = weights[me.rank].split([24, 16])
        arguments = (workspace, 24, 16, me.rank, me.world_size, EPS)
        q, k = lamport_rs.minimax_allreduce_rms_qk(parts[me.rank], weight_q, weight_k, *arguments)
        check_rounding(q, expected_norm([p[..., :24] for p in parts], [w[:24] for w in weights], me.rank), "q")
        check_rounding(k, expected_norm([p[..., 24:] for p in parts], [w[24:] for w in weights], me.rank), "k")


def test_leading_dimensions_are_rows(ranks_of):
    ranks_of(3).run(normalise_dimensions)


def normalise_beside_other_columns(me: Rank, columns: int) -> None:
    """Rows of qkv begin at any place: not all are at multiples of 16 bytes."""
    workspace, settings = minimax_workspace(me, 64, fused_qk=True), (16, 8, me.rank, me.world_size, EPS)
    weights = random_tensor((24,), torch.float32, 6, me.rank).split([16, 8])
    for dtype in (torch.bfloat16, torch.float32):
        qkv = random_tensor((5, columns), dtype, columns, me.rank)
        expected = lamport_rs.minimax_allreduce_rms_qk(qkv[:, :24].contiguous(), *weights, workspace, *settings)
        assert workspace.supports(qkv, "minimax_allreduce_rms_qk", weight_dtype=torch.float32, q_size=16, kv_size=8)
        compiled = torch.compile(lamport_rs.minimax_allreduce_rms_qk, backend="eager", fullgraph=True)
        for call in (lamport_rs.minimax_allreduce_rms_qk, torch.ops.lamport_rs.minimax_allreduce_rms_qk, compiled):
            table = workspace if call is lamport_rs.minimax_allreduce_rms_qk else workspace.workspace
            for found, wanted in zip(call(qkv, *weights, table, *settings), expected, strict=True):
                check_same_bits(found, wanted, f"{columns} columns of {dtype}")


@pytest.mark.parametrize("columns", [24, 25, 35, 40])
def test_qkv_may_have_any_number_of_columns_behind_q_and_k(ranks_of, columns):
    ranks_of(2).run(normalise_beside_other_columns, columns)


def normalise_into_qkv(me: Rank) -> None:
    """Where nothing is that is still read: in place, for one token, and in the columns behind Q and K."""
    workspace, settings = minimax_workspace(me, 64, fused_qk=True), (16, 8, me.rank, me.world_size, EPS)
    weights = random_tensor((24,), torch.float32, 6, me.rank).split([16, 8])
    places = {
        "in place": (1, lambda qkv: (qkv[:, :16], qkv[:, 16:24])),
        "behind K": (1, lambda qkv: (qkv[:, 24:40], qkv[:, 40:48])),
        "between rows": (2, lambda qkv: (qkv.view(-1)[24:56].view(2, 16), qkv.view(-1)[104:120].view(2, 8))),
    }
    for name, (tokens, outputs_in) in places.items():
        qkv = random_tensor((tokens, 80), torch.float32, tokens, me.rank)
        expected = lamport_rs.minimax_allreduce_rms_qk(qkv.clone(), *weights, workspace, *settings)
        q, k = outputs_in(qkv)
        lamport_rs.minimax_allreduce_rms_qk(qkv, *weights, workspace, *settings, q_out=q, k_out=k)
        check_same_bits(q, expected[0], f"q {name}")
        check_same_bits(k, expected[1], f"k {name}")


def test_outputs_may_lie_in_qkv_where_they_overwrite_nothing_that_is_read(ranks_of):
    ranks_of(2).run(normalise_into_qkv)


@pytest.mark.parametrize(
    ("tokens", "world_size", "fused_qk", "expected"),
    [
        (16384, 4, True, 2 << 20),
        (16384, 4, False, 2 << 20),
        (16384, 16, True, 2 << 20),
        (16385, 16, True, 4 << 20),
        (1 << 20, 8, False, 32 << 20),
        (1 << 20, 8, True, 64 << 20),
        ((1 << 20) + 1, 8, True, 66 << 20),
        (1, 2, True, 2 << 20),
    ],
)
def test_comm_size_is_the_formula_rounded_up_to_2_mib(tokens, world_size, fused_qk, expected):
    assert lamport_rs.LamportWorkspace.compute_comm_size_for_minimax(tokens, world_size, fused_qk) == expected
