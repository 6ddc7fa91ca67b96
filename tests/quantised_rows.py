"""all_reduce_rms_norm_quant against a reference from the formats' definitions, for the tests of both backends."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import check_rounding, check_same_bits, random_tensor, rms_norm_of_rows, rounded_sum_with

EPS = 1e-5
MAX = 448.0

Quantised = tuple[torch.Tensor, torch.Tensor]
"""The codes of `[..., groups, columns of a group]`, as bytes, and the scales, `[..., groups]`; none where none are
computed."""


class Definition(NamedTuple):
    """A format, by its definition."""

    group: int | None
    """Columns that share a scale: 0 for all, None where none is computed."""
    layout: str
    quantise: Callable[[torch.Tensor, torch.Tensor | None], Quantised]
    """Of float32 values, `[..., groups, columns of a group]`, and the scale that is given. On the CPU, whose
    divisions are exact."""
    code: torch.dtype = torch.float8_e4m3fn
    scale: torch.dtype = torch.float32
    """Of the tensors."""
    given: float | None = None
    """A scale to give."""


def fp8(scaled: torch.Tensor) -> torch.Tensor:
    codes = scaled.clamp(-MAX, MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    # One NaN: the positive one.
    return torch.where(codes & 0x7F == 0x7F, torch.tensor(0x7F, dtype=torch.uint8), codes)


def fp8_static(values: torch.Tensor, scale: torch.Tensor | None) -> Quantised:
    assert scale is not None
    return fp8(values * (torch.tensor(1.0) / scale.cpu().reshape(()))), torch.empty(0)


def fp8_token(values: torch.Tensor, _: torch.Tensor | None) -> Quantised:
    scales = torch.maximum(values.abs().amax(-1) / torch.tensor(MAX), torch.tensor(1 / (MAX * 512)))
    return fp8(values / scales.unsqueeze(-1)), scales


def fp8_group(values: torch.Tensor, _: torch.Tensor | None) -> Quantised:
    scales = torch.maximum(values.abs().amax(-1), torch.tensor(1e-10)) / torch.tensor(MAX)
    return fp8(values / scales.unsqueeze(-1)), scales


def ue8m0(values: torch.Tensor, least: float) -> Quantised:
    """With the least powers of two that the largest magnitudes, or `least`, are not beyond 448 times of."""
    wanted = torch.maximum(values.abs().amax(-1) / torch.tensor(MAX), torch.tensor(least))
    fraction, exponent = torch.frexp(wanted)
    exponents = torch.where(wanted == 0, 0, torch.where(fraction > 0.5, exponent, exponent - 1) + 127).clamp(0, 254)
    powers = torch.ldexp(torch.ones(exponents.shape, dtype=torch.float64), exponents - 127)
    is_finite = wanted.isfinite()
    powers = torch.where(is_finite, powers, torch.nan)
    return fp8((values / powers.unsqueeze(-1)).float()), torch.where(is_finite, exponents, 255).to(torch.uint8)


def nvfp4(values: torch.Tensor, scale: torch.Tensor | None) -> Quantised:
    assert scale is not None
    given, one = scale.cpu().reshape(()), torch.tensor(1.0)
    scales = (given * (values.abs().amax(-1) * (one / torch.tensor(6.0)))).clamp(max=MAX).to(torch.float8_e4m3fn)
    factor = torch.where(scales.float() == 0, 0.0, one / (scales.float() * (one / given)))
    scaled = (values * factor.unsqueeze(-1)).double().flatten(-2)
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
    # Of two that are as near, the even one.
    distances = (scaled.abs().clamp(max=6.0).unsqueeze(-1) - magnitudes).abs() + torch.arange(8) % 2 * 1e-12
    codes = torch.where(scaled.isnan(), 7, distances.argmin(-1) + 8 * scaled.signbit()).to(torch.uint8)
    pairs = codes[..., ::2] | codes[..., 1::2] << 4
    return pairs.unflatten(-1, (values.shape[-2], values.shape[-1] // 2)), scales.view(torch.uint8)


FORMATS = {
    "fp8_static": Definition(None, "none", fp8_static, given=0.01),
    "fp8_token": Definition(0, "row_major", fp8_token),
    "fp8_group": Definition(128, "row_major", fp8_group),
    "fp8_group_column_major": Definition(128, "column_major", fp8_group),
    "fp8_group_ue8m0": Definition(128, "packed", lambda values, _: ue8m0(values, 1e-10), scale=torch.int32),
    "mxfp8": Definition(32, "row_major", lambda values, _: ue8m0(values, 0.0), scale=torch.uint8),
    "mxfp8_swizzled": Definition(32, "swizzled", lambda values, _: ue8m0(values, 0.0), scale=torch.uint8),
    "nvfp4": Definition(16, "row_major", nvfp4, torch.uint8, torch.float8_e4m3fn, given=150.0),
    "nvfp4_swizzled": Definition(16, "swizzled", nvfp4, torch.uint8, torch.float8_e4m3fn, given=150.0),
}


def quantised(rows: torch.Tensor, quant_format: str, scale: torch.Tensor | None) -> Quantised:
    """Of normalised rows: the bytes, and the scales."""
    rows = rows.cpu().float()
    definition = FORMATS[quant_format]
    group = definition.group or rows.shape[-1]
    values = rows.reshape(*rows.shape[:-1], rows.shape[-1] // group, group)
    codes, scales = definition.quantise(values, scale)
    return codes.flatten(-2), scales


def empty_scales(quant_format: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """For rows of `shape`, as the format has them."""
    definition = FORMATS[quant_format]
    rows, groups = torch.Size(shape[:-1]).numel(), shape[-1] // (definition.group or shape[-1])
    if definition.layout == "swizzled":
        return torch.empty((rows + 127) // 128 * 128, groups, dtype=definition.scale, device=device)
    if definition.layout == "packed":
        groups = (groups + 3) // 4
    if definition.layout == "row_major":
        return torch.empty(*shape[:-1], groups, dtype=definition.scale, device=device)
    columns = torch.empty(groups, (rows + 3) // 4 * 4, dtype=definition.scale, device=device)
    strides = torch.empty(shape[:-1]).stride()
    return columns.as_strided((*shape[:-1], groups), (*strides, columns.stride(0)))


def empty_quantised_rows(quant_format: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """For rows of `shape`. Codes that have no dtype of their own lie in pairs."""
    code = FORMATS[quant_format].code
    columns = shape[-1] // 2 if code == torch.uint8 else shape[-1]
    return torch.empty(*shape[:-1], columns, dtype=code, device=device)


def scales_in_memory(scales: torch.Tensor, quant_format: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The scales of rows of `shape`, `[..., groups]`, read where the format's layout has them in memory."""
    definition = FORMATS[quant_format]
    rows, groups = torch.Size(shape[:-1]).numel(), shape[-1] // (definition.group or shape[-1])
    if definition.layout == "none" or rows == 0:
        return torch.empty(
            *shape[:-1], groups, dtype=torch.float32 if definition.scale == torch.float32 else torch.uint8
        )
    if definition.layout == "row_major":
        found = torch.as_strided(scales, (rows, groups), (groups, 1))
    elif definition.layout == "column_major":
        found = torch.as_strided(scales, (rows, groups), (1, (rows + 3) // 4 * 4))
    elif definition.layout == "packed":
        words = torch.as_strided(scales, (rows, (groups + 3) // 4), (1, (rows + 3) // 4 * 4))
        assert scales.shape == (*shape[:-1], words.shape[1])
        found = torch.empty(words.shape, dtype=torch.int32).copy_(words).view(torch.uint8)
        assert not bool(found[:, groups:].any()) or bool((found == 0xFF).all()), "scales beyond the row are not 0"
        found = found[:, :groups]
    else:
        # Tiles of 128 rows and 4 scales: rows that are 32 apart lie together.
        tiles = scales.view(torch.uint8).view((rows + 127) // 128, groups // 4, 32, 4, 4)
        found = tiles.permute(0, 3, 2, 1, 4).reshape(-1, groups)
        assert not bool(found[rows:].any()), "scales of rows that do not exist are not 0"
        found = found[:rows]
    found = found.reshape(*shape[:-1], groups).cpu()
    return found if found.dtype == torch.float32 else found.view(torch.uint8)


def check_same_scales(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    if found.dtype == torch.float32:
        check_same_bits(found, expected, f"{what}: the scales")
    else:
        assert torch.equal(found, expected), f"{what}: the scales differ"


def check_quantised(
    out: torch.Tensor,
    scales: torch.Tensor,
    rows: torch.Tensor,
    quant_format: str,
    what: str,
    given: torch.Tensor | None = None,
) -> None:
    definition = FORMATS[quant_format]
    codes, expected = quantised(rows, quant_format, given)
    assert out.dtype == definition.code, what
    assert torch.equal(out.cpu().view(torch.uint8), codes), f"{what}: the codes differ"
    if definition.group is None:
        assert scales is given, what
    else:
        assert scales.dtype == definition.scale, what
        check_same_scales(scales_in_memory(scales, quant_format, tuple(rows.shape)), expected, what)


def check_scales_spoilt(scales: torch.Tensor, quant_format: str, shape: tuple[int, ...]) -> None:
    found = scales_in_memory(scales, quant_format, shape)
    # NaN in UE8M0, and in e4m3.
    is_nan = found.isnan() if found.dtype == torch.float32 else found == 0xFF
    assert bool(is_nan.all()), "the scales are not NaN"


def scale_for(me: Rank, quant_format: str) -> torch.Tensor | None:
    given = FORMATS[quant_format].given
    return None if given is None else torch.tensor([given], device=me.device)


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
        check_quantised(out, scales, rows, quant_format, what, scale)
        plain = lamport_rs.all_reduce_rms_norm_quant(*arguments)
        assert plain[3] is None, what
        table = (*arguments[:3], workspace.workspace, *arguments[4:])
        operator = torch.ops.lamport_rs.all_reduce_rms_norm_quant(*table)
        others = [lamport_rs.all_reduce_rms_norm_quant(*arguments, algorithm=each) for each in algorithms]
        places = {"out": torch.empty_like(out), "residual_out": residual, "norm_out": inputs[me.rank]}
        if FORMATS[quant_format].group is not None:
            places["scale_out"] = empty_scales(quant_format, shape, me.device)
            places["scale_out"].untyped_storage().fill_(0xA5)
            assert places["scale_out"].stride() == scales.stride() or out.numel() == 0, what
        placed = lamport_rs.all_reduce_rms_norm_quant(*arguments, **places)
        check_same_bits(placed[3], rows, what)
        for other in (plain, operator, placed, *others):
            assert torch.equal(other[0].view(torch.uint8), out.view(torch.uint8)), f"{what}, called otherwise"
            check_same_bits(other[2], residual_out, what)
            if FORMATS[quant_format].group is not None:
                own, its = (scales_in_memory(each, quant_format, shape) for each in (scales, other[1]))
                check_same_scales(its, own, what)
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
    if FORMATS[quant_format].group is not None:
        scales = scales_in_memory(scales, quant_format, tuple(rows.shape))
    for algorithm, count in itertools.product(algorithms, (1, 2, 9, 33)):
        for first in range(0, min(tokens, 4 * count), count):
            few = slice(first, first + count)
            some, its, *_ = lamport_rs.all_reduce_rms_norm_quant(rows[few].clone(), *arguments, algorithm=algorithm)
            assert torch.equal(some.view(torch.uint8), out[few].view(torch.uint8)), f"{algorithm}, rows {few}"
            if FORMATS[quant_format].group is not None:
                its = scales_in_memory(its, quant_format, tuple(rows[few].shape))
                check_same_scales(its, scales[few], f"{algorithm}, rows {few}")


def leave_nan_after_a_fault(me: Rank, quant_format: str) -> None:
    """Rank 1 does not come: what is left is NaN, in the codes and in the scales."""
    workspace = me.workspace(1 << 20, kept=True, timeout=1.0)
    if me.rank == 1:
        return
    rows = torch.ones(4, 256, dtype=torch.bfloat16, device=me.device)
    scale = scale_for(me, quant_format)
    places = {
        "out": empty_quantised_rows(quant_format, (4, 256), me.device).zero_(),
        "norm_out": torch.zeros_like(rows),
        "residual_out": torch.zeros_like(rows),
    }
    if FORMATS[quant_format].group is not None:
        places["scale_out"] = empty_scales(quant_format, (4, 256), me.device)
        places["scale_out"].untyped_storage().fill_(0)
    weight = torch.ones_like(rows[0])

    def call() -> None:
        lamport_rs.all_reduce_rms_norm_quant(rows, None, weight, workspace, quant_format, scale, EPS, **places)
        workspace.synchronize()

    with pytest.raises(lamport_rs.LamportTimeoutError) as raised:
        call()
    assert raised.value.missing_ranks == (1,)
    if FORMATS[quant_format].group is not None:
        check_scales_spoilt(places.pop("scale_out"), quant_format, (4, 256))
    for name, place in places.items():
        # Four bits have no NaN.
        assert place.dtype == torch.uint8 or bool(place.float().isnan().all()), f"{name} is not NaN"
