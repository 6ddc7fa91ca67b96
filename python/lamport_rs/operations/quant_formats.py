"""What rows are quantised to: names, shapes and layouts, and the values, by torch.

The core says which formats there are (`rust/kernels/src/sink.rs`). A new one needs its name in `QuantFormat`, and its
values in `quantise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import torch

from lamport_rs import _core
from lamport_rs._core import LamportError

QuantFormat: TypeAlias = Literal[
    "fp8_static",
    "fp8_token",
    "fp8_group",
    "fp8_group_column_major",
    "fp8_group_ue8m0",
    "mxfp8",
    "mxfp8_swizzled",
    "nvfp4",
    "nvfp4_swizzled",
]
"""What rows become, and the scales that give the rows back.

The rows are FP8 e4m3 (`torch.float8_e4m3fn`). For the values `y` that share a scale `s`, in float32 and rounded to
nearest even:

`"fp8_static"`: one scale for the tensor, which is given. `float8_e4m3fn(clamp(y * (1 / s), -448, 448))`.

`"fp8_token"`: a scale for each row, float32, `[..., 1]`. `float8_e4m3fn(clamp(y / s, -448, 448))`, where
`s = max(max(|y|) / 448, 1 / (448 * 512))`.

`"fp8_group"`: a scale for each 128 columns, float32, `[..., hidden // 128]`. Likewise, with
`s = max(max(|y|), 1e-10) / 448`.

`"fp8_group_column_major"`: the same, but the scales of a column lie side by side, and columns begin at multiples of
16 bytes, as DeepGEMM reads them.

`"fp8_group_ue8m0"`: a power of two for each 128 columns. Likewise, with
`s = 2**ceil(log2(max(max(|y|) / 448, 1e-10)))`: the formula of vLLM's `per_token_group_quant_8bit_packed`. There is
the exponent, `log2(s) + 127`, and 255 for NaN (UE8M0). Four of a row are packed in an int32, the first in the lowest
byte; those of groups beyond the row are 0. The int32, `[..., ceil(hidden / 512)]`, lie as those float32 do: what
DeepGEMM's `get_mn_major_tma_aligned_packed_ue8m0_tensor` makes, for Blackwell.

`"mxfp8"`: a power of two for each 32 columns, uint8, `[..., hidden // 32]`: the exponent, as above. Likewise, with
`s = max(2**ceil(log2(max(|y|) / 448)), 2**-127)`. The conversion in the OCP Microscaling specification 1.0 has
`2**(floor(log2(max(|y|))) - 8)`, and cuts off what lies between 448 and 512 times that. Rounding up cuts off nothing:
so do FlashInfer's `mxfp8_quantize`, which vLLM calls, and torchao's `RCEIL`.

`"mxfp8_swizzled"`: the same, with the scales in tiles of 128 rows and 4 scales, as the tensor cores of Blackwell read
them: the layout of cuBLAS's 1D block scaling, and FlashInfer's `layout_128x4`. Scale `j` of row `i` is byte
`(i // 128 * (hidden // 128) + j // 4) * 512 + i % 32 * 16 + i // 32 % 4 * 4 + j % 4`. The tensor is
`[rows, hidden // 32]`, with rows rounded up to 128; the scales of those that do not exist are 0. `hidden` is a
multiple of 128.

`"nvfp4"`: FP4 e2m1, uint8, `[..., hidden // 2]`: two to a byte, the first in the lower half. One scale `g` for the
tensor is given, and for each 16 columns one is computed, FP8 e4m3, `[..., hidden // 16]`:
`s = float8_e4m3fn(min(g * (max(|y|) * (1 / 6)), 448))`. `float4_e2m1(clamp(y * (1 / (s * (1 / g))), -6, 6))`, and 0
where `s` is 0. `y` is about the code times `s / g`, and `g` some `448 * 6 / max(|y|)` of all rows: FlashInfer's
`nvfp4_quantize` and vLLM's `scaled_fp4_quant` have that convention and formula, with approximate reciprocals. A NaN
is in the scale only: the codes have none.

`"nvfp4_swizzled"`: the same, with the scales in tiles, as above: 4 scales are 64 columns here, of which `hidden` is a
multiple.

A NaN makes the scale that it shares NaN, and all values of eight bits that share it. So does an infinity, where
scales are powers of two.
"""


class _Format(NamedTuple):
    """As the core describes it."""

    is_given: bool
    """Whether a scale for the tensor is given."""
    group_columns: int | None
    """Columns that share a scale that is computed: 0 for all of a row, None if none is computed."""
    code: torch.dtype
    columns_per_code: int
    scale: torch.dtype
    scales_per_element: int
    layout: str


_FORMATS = {
    name: _Format(is_given, group, getattr(torch, code), columns, getattr(torch, scale), scales, layout)
    for name, is_given, group, code, columns, scale, scales, layout in _core.quant_formats()
}

_FP8_MAX = 448.0
"""The largest value of FP8 e4m3."""
_FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of FP4 e2m1, by code."""
_FP4_MAX = _FP4_MAGNITUDES[-1]
_LEAST_ROW_SCALE = 1.0 / (_FP8_MAX * 512.0)
"""Rows of zeros have it."""
_LEAST_OF_GROUP = 1e-10
"""Groups of smaller values have the scale of this one."""
_LEAST_UE8M0_OF_GROUP = 1e-10
"""No power of two is less, before it is rounded, that is the scale of a group."""
_SCALE_ALIGNMENT = 16
"""Columns of scales begin at multiples of as many bytes."""
_TILE_ROWS, _TILE_SCALES = 128, 4
"""Of a tile of swizzled scales."""


def must_lie_as_allocated(quant_format: str) -> bool:
    """Whether scales are not row-major, so that no other layout will do."""
    return _FORMATS[quant_format].layout != "row_major" if quant_format in _FORMATS else False


def computes_scales(quant_format: str) -> bool:
    """Whether there are scales that are computed."""
    return _FORMATS[quant_format].group_columns is not None


def scales_of(quant_format: str, scale: torch.Tensor | None, computed: torch.Tensor) -> torch.Tensor:
    """Return the scales that the caller gets: those that were computed, or the one that is given where none are."""
    return computed if scale is None or computes_scales(quant_format) else scale


def check_scale_out(quant_format: str, scale_out: torch.Tensor | None) -> None:
    """Raise if there is a place for scales that the format does not compute."""
    if scale_out is not None and quant_format in _FORMATS and not computes_scales(quant_format):
        raise LamportError(f"{quant_format} computes no scales: scale_out must be None")


def empty_quantised(
    input: torch.Tensor,  # noqa: A002
    quant_format: str,
    scale: torch.Tensor | None,
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(out, scales)`, those that are not given allocated; empty where there is nothing."""
    if quant_format not in _FORMATS:
        raise LamportError(f"quant_format is {quant_format!r}, but must be one of {', '.join(map(repr, _FORMATS))}")
    described = _FORMATS[quant_format]
    if described.is_given != (scale is not None):
        wanted = "needs a scale" if described.is_given else "computes its scales, and takes none"
        raise LamportError(f"{quant_format} {wanted}")
    if out is None:
        columns = input.shape[-1] if input.dim() > 0 else 1
        shape = (*input.shape[:-1], columns // described.columns_per_code)
        out = torch.empty(shape, dtype=described.code, device=input.device)
    check_scale_out(quant_format, scale_out)
    if scale_out is None:
        scale_out = _empty_scales(input, described)
    return out, scale_out


def _round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


def _empty_scales(input: torch.Tensor, described: _Format) -> torch.Tensor:  # noqa: A002
    group, dtype, outer = described.group_columns, described.scale, input.shape[:-1]
    columns = input.shape[-1] if input.dim() > 0 else 0
    if group is None:
        return torch.empty((0,), dtype=dtype, device=input.device)
    scales = columns // group if group else 1
    elements = (scales + described.scales_per_element - 1) // described.scales_per_element
    if described.layout == "row_major":
        return torch.empty((*outer, elements), dtype=dtype, device=input.device)
    strides: list[int] = []
    rows = 1
    for size in reversed(outer):
        strides.insert(0, rows)
        rows = rows * size
    if described.layout == "swizzled":
        return torch.empty((_round_up(rows, _TILE_ROWS), elements), dtype=dtype, device=input.device)
    aligned = _round_up(rows, _SCALE_ALIGNMENT // dtype.itemsize)
    shape: Sequence[int] = (*outer, elements)
    return torch.empty_strided(shape, (*strides, aligned), dtype=dtype, device=input.device)


def quantise(
    rows: torch.Tensor, quant_format: str, out: torch.Tensor, scale: torch.Tensor | None, scale_out: torch.Tensor
) -> None:
    """Quantise rows with torch: for a group of one rank on a GPU."""
    with torch.inference_mode():
        put_quantised(rows, quant_format, out, scale, scale_out)


def put_quantised(
    rows: torch.Tensor, quant_format: str, out: torch.Tensor, scale: torch.Tensor | None, scale_out: torch.Tensor
) -> None:
    """`quantise`, which can be compiled."""
    described = _FORMATS[quant_format]
    columns = described.group_columns or rows.shape[-1]
    values = rows.float().unflatten(-1, (rows.shape[-1] // columns, columns))
    largest = values.abs().amax(-1)
    # By a tensor, not by a number: torch multiplies by the reciprocal of a number.
    wanted = largest / torch.full((), _FP8_MAX, device=rows.device)
    if scale is not None and described.group_columns is not None:
        _put_nvfp4(values, largest, scale.reshape(()), described, out, scale_out)
    elif scale is not None:
        _put_fp8(values * scale.reciprocal().reshape(()), out)
    elif quant_format == "fp8_token":
        _put_fp8(values / scale_out.copy_(wanted.clamp(min=_LEAST_ROW_SCALE)).unsqueeze(-1), out)
    elif quant_format == "fp8_group_ue8m0":
        _put_with_ue8m0(values, wanted.clamp(min=_LEAST_UE8M0_OF_GROUP), described, out, scale_out)
    elif quant_format in ("mxfp8", "mxfp8_swizzled"):
        _put_with_ue8m0(values, wanted, described, out, scale_out)
    else:
        scales = largest.clamp(min=_LEAST_OF_GROUP) / torch.full((), _FP8_MAX, device=rows.device)
        _put_fp8(values / scale_out.copy_(scales).unsqueeze(-1), out)


def _put_fp8(scaled: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(scaled.clamp(-_FP8_MAX, _FP8_MAX).flatten(-2))


def _put_with_ue8m0(
    values: torch.Tensor, wanted: torch.Tensor, described: _Format, out: torch.Tensor, scale_out: torch.Tensor
) -> None:
    bits = wanted.view(torch.int32)
    # Any bit of the fraction carries into the exponent. Half of the least normal float32 is 2^-127.
    exponents = torch.where(bits <= 0x400000, 0, (bits.long() + 0x7FFFFF) >> 23).clamp(max=255)
    inverse = torch.where(exponents == 255, 0x7FC00000, (254 - exponents) << 23).int().view(torch.float32)
    _put_bytes(exponents.to(torch.uint8), described, scale_out)
    _put_fp8(values * inverse.unsqueeze(-1), out)


def _put_nvfp4(
    values: torch.Tensor,
    largest: torch.Tensor,
    given: torch.Tensor,
    described: _Format,
    out: torch.Tensor,
    scale_out: torch.Tensor,
) -> None:
    sixth = torch.full((), _FP4_MAX, device=values.device).reciprocal()
    scales = (given * (largest * sixth)).clamp(max=_FP8_MAX).to(torch.float8_e4m3fn)
    _put_bytes(scales, described, scale_out)
    wide = scales.float()
    factor = torch.where(wide == 0, 0.0, (wide * given.reciprocal()).reciprocal())
    scaled = (values * factor.unsqueeze(-1)).flatten(-2)
    magnitude = torch.where(scaled.isnan(), _FP4_MAX, scaled.abs())
    codes = torch.zeros(scaled.shape, dtype=torch.uint8, device=values.device)
    # Each step is halfway between two neighbours; the even one of these has it.
    for code, (low, high) in enumerate(pairwise(_FP4_MAGNITUDES)):
        middle = (low + high) / 2
        codes += (magnitude >= middle) if code % 2 else (magnitude > middle)
    codes |= (scaled.signbit() & ~scaled.isnan()).to(torch.uint8) << 3
    out.copy_(codes[..., ::2] | codes[..., 1::2] << 4)


def _put_bytes(scales: torch.Tensor, described: _Format, scale_out: torch.Tensor) -> None:
    """Store scales of a byte, `[..., scales of a row]`, where their layout has them."""
    if described.layout == "swizzled":
        scales = scales.flatten(0, -2) if scales.dim() > 1 else scales.unsqueeze(0)
        rows, columns = (torch.arange(size, device=scales.device) for size in scales.shape)
        of_row = rows // 128 * (_TILE_ROWS * scales.shape[-1]) + rows % 32 * 16 + rows // 32 % 4 * 4
        places = of_row.unsqueeze(-1) + columns // 4 * 512 + columns % 4
        scale_out.view(torch.uint8).zero_().view(-1)[places] = scales.view(torch.uint8)
    else:
        padding = -scales.shape[-1] % described.scales_per_element
        padded = torch.nn.functional.pad(scales.view(torch.uint8), (0, padding))
        scale_out.copy_(padded.view(scale_out.dtype))
