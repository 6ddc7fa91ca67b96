"""all_reduce_quant against a reference from the formats' definitions, for the tests of both backends."""

import itertools
from typing import Any

import lamport_rs
import pytest
import torch
from quantised_rows import (
    FORMATS,
    check_quantised,
    check_same_scales,
    check_scales_spoilt,
    empty_quantised_rows,
    empty_scales,
    scale_for,
    scales_in_memory,
)
from ranks import Rank
from reference import check_same_bits, random_tensor, rounded_sum


def room(me: Rank) -> int:
    return lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(1 << 18, me.world_size)


def inputs_of(me: Rank, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Of all ranks. Where there are rows for it: a NaN, zeros, an infinity, and groups of the least scale."""
    inputs = [random_tensor(shape, dtype, seed, rank).to(me.device) for rank in range(me.world_size)]
    for each in inputs:
        each[..., :128] *= 100
        if each.dim() > 1 and each.shape[0] > 3:
            each[1], each[2, 5] = 0, torch.nan
            each[3, -1] = torch.inf
            each[4:, -128:] *= 1e-6
    return inputs


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def quantise_shapes(
    me: Rank,
    quant_format: str,
    dtype: torch.dtype,
    shapes: list[tuple[int, ...]],
    algorithms: tuple[str, ...] = ("auto",),
) -> list[bytes]:
    """Every way to call it, with the sum and without; what all ranks must have in common."""
    workspace = me.workspace(room(me))
    results = []
    for seed, shape in enumerate(shapes):
        inputs = inputs_of(me, shape, dtype, seed)
        own, scale = inputs[me.rank], scale_for(me, quant_format)
        arguments: tuple[Any, ...] = (own, workspace, quant_format, scale)
        what = f"{quant_format} of {shape} {dtype}"
        expected = rounded_sum(inputs)
        out, scales, summed = lamport_rs.all_reduce_quant(*arguments, with_sum=True)
        assert summed is not None, what
        check_same_bits(summed, expected, what)
        check_quantised(out, scales, summed, quant_format, what, scale)
        plain = lamport_rs.all_reduce_quant(*arguments)
        assert plain[2] is None, what
        operator = torch.ops.lamport_rs.all_reduce_quant(own, workspace.workspace, *arguments[2:], True)
        without = torch.ops.lamport_rs.all_reduce_quant(own, workspace.workspace, *arguments[2:])
        others = [lamport_rs.all_reduce_quant(*arguments, algorithm=each) for each in algorithms]
        places = {"out": torch.empty_like(out), "sum_out": own}
        if FORMATS[quant_format].group is not None:
            places["scale_out"] = empty_scales(quant_format, shape, me.device)
            places["scale_out"].untyped_storage().fill_(0xA5)
            assert places["scale_out"].stride() == scales.stride() or out.numel() == 0, what
        placed = lamport_rs.all_reduce_quant(*arguments, **places)
        assert placed[2] is own, what
        for with_sum in (operator, placed):
            check_same_bits(with_sum[2], expected, what)
        for other in (plain, operator, without, placed, *others):
            assert same(other[0], out), f"{what}, called otherwise"
            if FORMATS[quant_format].group is not None:
                own, its = (scales_in_memory(each, quant_format, shape) for each in (scales, other[1]))
                check_same_scales(its, own, what)
        results.append(bytes(out.cpu().view(torch.uint8).flatten().tolist()))
    return results


def quantise_alone_and_in_a_batch(
    me: Rank, quant_format: str, tokens: int, hidden: int, algorithms: tuple[str, ...] = ("auto",)
) -> None:
    workspace = me.workspace(room(me))
    rows = random_tensor((tokens, hidden), torch.bfloat16, 7, me.rank).to(me.device)
    arguments = (workspace, quant_format, scale_for(me, quant_format))
    out, scales, _ = lamport_rs.all_reduce_quant(rows, *arguments)
    if FORMATS[quant_format].group is not None:
        scales = scales_in_memory(scales, quant_format, tuple(rows.shape))
    for algorithm, count in itertools.product(algorithms, (1, 2, 9, 33)):
        for first in range(0, min(tokens, 4 * count), count):
            few = slice(first, first + count)
            some, its, _ = lamport_rs.all_reduce_quant(rows[few].clone(), *arguments, algorithm=algorithm)
            assert same(some, out[few]), f"{algorithm}, rows {few}"
            if FORMATS[quant_format].group is not None:
                its = scales_in_memory(its, quant_format, tuple(rows[few].shape))
                check_same_scales(its, scales[few], f"{algorithm}, rows {few}")


def leave_nan_after_a_fault(me: Rank, quant_format: str) -> None:
    """Rank 1 does not come: what is left is NaN, in the codes, the scales and the sum."""
    workspace = me.workspace(1 << 20, kept=True, timeout=1.0)
    if me.rank == 1:
        return
    rows = torch.ones(4, 256, dtype=torch.bfloat16, device=me.device)
    scale = scale_for(me, quant_format)
    places = {
        "out": empty_quantised_rows(quant_format, (4, 256), me.device).zero_(),
        "sum_out": torch.zeros_like(rows),
    }
    if FORMATS[quant_format].group is not None:
        places["scale_out"] = empty_scales(quant_format, (4, 256), me.device)
        places["scale_out"].untyped_storage().fill_(0)

    def call() -> None:
        lamport_rs.all_reduce_quant(rows, workspace, quant_format, scale, **places)
        workspace.synchronize()

    with pytest.raises(lamport_rs.LamportTimeoutError) as raised:
        call()
    assert raised.value.missing_ranks == (1,)
    if FORMATS[quant_format].group is not None:
        check_scales_spoilt(places.pop("scale_out"), quant_format, (4, 256))
    for name, place in places.items():
        # Four bits have no NaN.
        assert place.dtype == torch.uint8 or bool(place.float().isnan().all()), f"{name} is not NaN"
