"""all_reduce_rms_norm_quant against a reference from the formats' definitions, for the tests of both backends."""

import itertools

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import check_rounding, check_same_bits, random_tensor, rms_norm_of_rows, rounded_sum_with

EPS = 1e-5
GROUPS = {"fp8_static": None, "fp8_token": 0, "fp8_group": 128, "fp8_group_column_major": 128}
"""Columns that share a scale: 0 for all, None where the scale is given."""
FORMATS = list(GROUPS)
MAX = 448.0


def quantised(rows: torch.Tensor, quant_format: str, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of normalised rows: the codes, as bytes, and the scales. On the CPU, whose divisions are exact."""
    rows = rows.cpu().float()
    group = GROUPS[quant_format] or rows.shape[-1]
    values = rows.reshape(*rows.shape[:-1], rows.shape[-1] // group, group)
    largest, most = values.abs().amax(-1), torch.tensor(MAX)
    if scale is not None:
        scales, scaled = scale.cpu(), values * (torch.tensor(1.0) / scale.cpu().reshape(()))
    else:
        if quant_format == "fp8_token":
            scales = torch.maximum(largest / most, torch.tensor(1 / (MAX * 512)))
        else:
            scales = torch.maximum(largest, torch.tensor(1e-10)) / most
        scaled = values / scales.unsqueeze(-1)
    codes = scaled.clamp(-MAX, MAX).to(torch.float8_e4m3fn).reshape(rows.shape).view(torch.uint8)
    # One NaN: the positive one.
    return torch.where(codes & 0x7F == 0x7F, torch.tensor(0x7F, dtype=torch.uint8), codes), scales


def check_quantised(out: torch.Tensor, scales: torch.Tensor, rows: torch.Tensor, quant_format: str, what: str) -> None:
    given = scales if quant_format == "fp8_static" else None
    codes, expected = quantised(rows, quant_format, given)
    assert out.dtype == torch.float8_e4m3fn, what
    assert torch.equal(out.cpu().view(torch.uint8), codes), f"{what}: the codes differ"
    check_same_bits(scales.cpu(), expected, f"{what}: the scales")


def check_columns(scales: torch.Tensor) -> None:
    """As DeepGEMM reads them: those of a column side by side, columns at multiples of 16 bytes."""
    rows, count = scales.shape[:-1].numel(), scales.shape[-1]
    in_memory = torch.as_strided(scales, (rows, count), (1, (rows + 3) // 4 * 4))
    check_same_bits(in_memory, scales.reshape(rows, count), "the scales in memory")


def scale_for(me: Rank, quant_format: str) -> torch.Tensor | None:
    return torch.tensor([0.01], device=me.device) if quant_format == "fp8_static" else None


def quantise_shapes(
    me: Rank,
    quant_format: str,
    dtype: torch.dtype,
    shapes: list[tuple[int, ...]],
    algorithms: tuple[str, ...] = ("auto",),
) -> list[bytes]:
    """Every way to call it, with the rows as they are and without; what all ranks must have in common."""
    workspace = me.workspace(lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(1 << 18, me.world_size))
    results = []
    for seed, shape in enumerate(shapes):
        inputs = [random_tensor(shape, dtype, seed, rank).to(me.device) for rank in range(me.world_size)]
        residual = random_tensor(shape, dtype, seed, 100).to(me.device)
        residual[..., :128] *= 100
        weight = random_tensor(shape[-1:], dtype, seed, 101).to(me.device)
        if residual.dim() > 1 and residual.shape[0] > 2:
            # A row of NaN, one of zeros, and groups whose scale is the least.
            residual[2] = torch.nan
            for each in (*inputs, residual):
                each[1] = 0
            weight[128:256] = 1e-12
        scale = scale_for(me, quant_format)
        arguments = (inputs[me.rank], residual, weight, workspace, quant_format, scale, EPS)
        what = f"{quant_format} of {shape} {dtype}"
        out, scales, residual_out, rows = lamport_rs.all_reduce_rms_norm_quant(*arguments, with_norm=True)
        assert rows is not None, what
        summed = rounded_sum_with(residual, inputs)
        check_same_bits(residual_out, summed, what)
        whole = ~summed.isnan().any(-1)
        check_rounding(rows[whole], rms_norm_of_rows(summed, weight, EPS)[whole], what)
        check_quantised(out, scales, rows, quant_format, what)
        if quant_format == "fp8_group_column_major":
            check_columns(scales)
        plain = lamport_rs.all_reduce_rms_norm_quant(*arguments)
        assert plain[3] is None, what
        table = (*arguments[:3], workspace.workspace, *arguments[4:])
        operator = torch.ops.lamport_rs.all_reduce_rms_norm_quant(*table)
        others = [lamport_rs.all_reduce_rms_norm_quant(*arguments, algorithm=each) for each in algorithms]
        places = {"out": torch.empty_like(out), "residual_out": residual, "norm_out": inputs[me.rank]}
        if scale is None:
            places["scale_out"] = torch.empty_strided(scales.shape, scales.stride(), device=me.device).fill_(torch.nan)
        placed = lamport_rs.all_reduce_rms_norm_quant(*arguments, **places)
        check_same_bits(placed[3], rows, what)
        for other in (plain, operator, placed, *others):
            assert torch.equal(other[0].view(torch.uint8), out.view(torch.uint8)), f"{what}, called otherwise"
            check_same_bits(other[2], residual_out, what)
            if scale is None:
                check_same_bits(other[1], scales, what)
        results.append(bytes(out.cpu().view(torch.uint8).flatten().tolist()))
    return results


def quantise_alone_and_in_a_batch(
    me: Rank, quant_format: str, tokens: int, hidden: int, algorithms: tuple[str, ...] = ("auto",)
) -> None:
    workspace = me.workspace(lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(1 << 18, me.world_size))
    rows = random_tensor((tokens, hidden), torch.bfloat16, 7, me.rank).to(me.device)
    weight = random_tensor((hidden,), torch.bfloat16, 101).to(me.device)
    arguments = (None, weight, workspace, quant_format, scale_for(me, quant_format), EPS)
    out, scales, *_ = lamport_rs.all_reduce_rms_norm_quant(rows, *arguments)
    for algorithm, count in itertools.product(algorithms, (1, 2, 9, 33)):
        for first in range(0, min(tokens, 4 * count), count):
            few = slice(first, first + count)
            some, its, *_ = lamport_rs.all_reduce_rms_norm_quant(rows[few].clone(), *arguments, algorithm=algorithm)
            assert torch.equal(some.view(torch.uint8), out[few].view(torch.uint8)), f"{algorithm}, rows {few}"
            if quant_format != "fp8_static":
                check_same_bits(its, scales[few], f"{algorithm}, the scales of rows {few}")


def leave_nan_after_a_fault(me: Rank, quant_format: str) -> None:
    """Rank 1 does not come: what is left is NaN, in the codes and in the scales."""
    workspace = me.workspace(1 << 20, kept=True, timeout=2.0)
    if me.rank == 1:
        return
    rows = torch.ones(4, 256, dtype=torch.bfloat16, device=me.device)
    scale = scale_for(me, quant_format)
    places = {
        "out": torch.zeros(4, 256, device=me.device).to(torch.float8_e4m3fn),
        "norm_out": torch.zeros_like(rows),
        "residual_out": torch.zeros_like(rows),
    }
    if scale is None:
        count = 256 // (GROUPS[quant_format] or 256)
        # Of four rows: as many as columns are multiples of.
        by_row = (1, 4) if quant_format == "fp8_group_column_major" else (count, 1)
        places["scale_out"] = torch.empty_strided((4, count), by_row, device=me.device).zero_()
    weight = torch.ones_like(rows[0])

    def call() -> None:
        lamport_rs.all_reduce_rms_norm_quant(rows, None, weight, workspace, quant_format, scale, EPS, **places)
        workspace.synchronize()

    with pytest.raises(lamport_rs.LamportTimeoutError) as raised:
        call()
    assert raised.value.missing_ranks == (1,)
    for name, place in places.items():
        assert bool(place.float().isnan().all()), f"{name} is not NaN"
