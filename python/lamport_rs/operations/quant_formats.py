"""What rows are quantised to: names, shapes and layouts, and the values, by torch.

The core says which formats there are (`rust/kernels/src/sink.rs`). A new one needs its name in `QuantFormat`, and its
values in `quantise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from lamport_rs import _core
from lamport_rs._core import LamportError

QuantFormat: TypeAlias = Literal["fp8_static", "fp8_token", "fp8_group", "fp8_group_column_major"]
"""What rows become. All are FP8 e4m3 (`torch.float8_e4m3fn`), and float32 scales that give the rows back.

`"fp8_static"`: one scale for the tensor, which is given. `"fp8_token"`: a scale for each row. `"fp8_group"`: one for
each 128 columns of a row. `"fp8_group_column_major"`: the same, but the scales of a column lie side by side, and
columns begin at multiples of 16 bytes, as DeepGEMM reads them.
"""

_GROUPS = {name: columns for name, columns, _ in _core.quant_formats()}
"""Columns that share a scale, by format: 0 for all of a row, None if the scale is given."""
_COLUMN_MAJOR = frozenset(name for name, _, is_column_major in _core.quant_formats() if is_column_major)

_MAX = 448.0
"""The largest value of FP8 e4m3."""
_LEAST_ROW_SCALE = 1.0 / (_MAX * 512.0)
"""Rows of zeros have it."""
_LEAST_OF_GROUP = 1e-10
"""Groups of smaller values have the scale of this one."""
_SCALE_ALIGNMENT = 4
"""Columns of scales begin at multiples of as many."""


def must_lie_as_allocated(quant_format: str) -> bool:
    """Whether scales are not row-major, so that no other layout will do."""
    return quant_format in _COLUMN_MAJOR


def empty_quantised(
    input: torch.Tensor,  # noqa: A002
    quant_format: str,
    scale: torch.Tensor | None,
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(out, scales)`, those that are not given allocated; empty where there is nothing."""
    if quant_format not in _GROUPS:
        raise LamportError(f"quant_format is {quant_format!r}, but must be one of {', '.join(map(repr, _GROUPS))}")
    group = _GROUPS[quant_format]
    if (group is None) != (scale is not None):
        wanted = "needs a scale" if group is None else "computes its scales, and takes none"
        raise LamportError(f"{quant_format} {wanted}")
    if out is None:
        out = torch.empty(input.shape, dtype=torch.float8_e4m3fn, device=input.device)
    if group is None and scale_out is not None:
        raise LamportError(f"{quant_format} computes no scales: scale_out must be None")
    if scale_out is None:
        scale_out = _empty_scales(input, quant_format)
    return out, scale_out


def _empty_scales(input: torch.Tensor, quant_format: str) -> torch.Tensor:  # noqa: A002
    group = _GROUPS[quant_format]
    columns = input.shape[-1] if input.dim() > 0 else 0
    shape: Sequence[int] = (0,) if group is None else (*input.shape[:-1], columns // group if group else 1)
    if quant_format not in _COLUMN_MAJOR:
        return torch.empty(shape, dtype=torch.float32, device=input.device)
    strides: list[int] = []
    rows = 1
    for size in reversed(input.shape[:-1]):
        strides.insert(0, rows)
        rows = rows * size
    aligned = (rows + _SCALE_ALIGNMENT - 1) // _SCALE_ALIGNMENT * _SCALE_ALIGNMENT
    return torch.empty_strided(shape, (*strides, aligned), dtype=torch.float32, device=input.device)


def quantise(rows: torch.Tensor, quant_format: str, out: torch.Tensor, scale: torch.Tensor) -> None:
    """Quantise rows with torch: for a group of one rank on a GPU."""
    with torch.inference_mode():
        group = _GROUPS[quant_format]
        columns = group or rows.shape[-1]
        values = rows.float().unflatten(-1, (rows.shape[-1] // columns, columns))
        if group is None:
            scaled = values * scale.reciprocal().reshape(())
        else:
            # By a tensor, not by a number: torch multiplies by the reciprocal of a number.
            largest, most = values.abs().amax(-1), torch.full((), _MAX, device=rows.device)
            if group == 0:
                scale.copy_((largest / most).clamp(min=_LEAST_ROW_SCALE))
            else:
                scale.copy_(largest.clamp(min=_LEAST_OF_GROUP) / most)
            scaled = values / scale.unsqueeze(-1)
        out.copy_(scaled.clamp(-_MAX, _MAX).flatten(-2))
