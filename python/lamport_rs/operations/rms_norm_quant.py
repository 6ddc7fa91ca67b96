"""The norm of a sum, quantised: what an FP8 product takes, without the pass over memory that makes it of the norm.

A format is a line of `_GROUPS` here, beside its kernel (`kernels/sink`), its line in `rust/kernels/src/sink.rs` and
what a row becomes on the host (`rust/core/src/operations/rms_norm_quant/format.rs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version

from lamport_rs import _core
from lamport_rs._core import LamportError
from lamport_rs.autograd import warn_of_lost_gradient
from lamport_rs.layout import empty_dense
from lamport_rs.observation import with_range
from lamport_rs.operations.collective import (
    Algorithm,
    Collective,
    check_apart,
    check_tensor,
    copy_to,
    core_of,
    table_of,
)
from lamport_rs.single_rank import normalise_sum
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace

QuantFormat: TypeAlias = Literal["fp8_static", "fp8_token", "fp8_group", "fp8_group_column_major"]
"""What normalised rows become. All are FP8 e4m3 (`torch.float8_e4m3fn`), and float32 scales that give the rows back.

`"fp8_static"`: one scale for the tensor, which is given. `"fp8_token"`: a scale for each row. `"fp8_group"`: one for
each 128 columns of a row. `"fp8_group_column_major"`: the same, but the scales of a column lie side by side, and
columns begin at multiples of 16 bytes, as DeepGEMM reads them.
"""

_COLUMN_MAJOR = "fp8_group_column_major"
_GROUPS: dict[str, int | None] = {"fp8_static": None, "fp8_token": 0, "fp8_group": 128, _COLUMN_MAJOR: 128}
"""Columns that share a scale, by format: 0 for all of a row, None if the scale is given."""

_MAX = 448.0
"""The largest value of FP8 e4m3."""
_LEAST_ROW_SCALE = 1.0 / (_MAX * 512.0)
"""Rows of zeros have it."""
_LEAST_OF_GROUP = 1e-10
"""Groups of smaller values have the scale of this one."""
_SCALE_ALIGNMENT = 4
"""Columns of scales begin at multiples of as many."""


def all_reduce_rms_norm_quant(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    quant_format: QuantFormat,
    scale: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    *,
    with_norm: bool = False,
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    norm_out: torch.Tensor | None = None,
    algorithm: Algorithm = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Do `all_reduce_rms_norm`, and quantise the normalised rows.

    The rows are rounded to `input`'s dtype first, as if the quantiser were an operation of its own. Then, for the
    values `y` that share a scale `s`::

        out = float8_e4m3fn(clamp(y * (1 / s), -448, 448))    where `s` is given
        out = float8_e4m3fn(clamp(y / s, -448, 448))          where it is computed:
        s = max(max(|y|) / 448, 1 / (448 * 512))              for a row
        s = max(max(|y|), 1e-10) / 448                        for a group of columns

    in float32, rounded to nearest even: what vLLM's quantising kernels compute. But a NaN, which their maxima pass
    over, makes the scale that it shares NaN, and all values that share it.

    Args:
        input: As for `all_reduce_rms_norm`, float16 or bfloat16; `hidden` a multiple of 128 for groups.
        residual: As for `all_reduce_rms_norm`.
        weight: As for `all_reduce_rms_norm`.
        workspace: The group's workspace, or its table.
        quant_format: See `QuantFormat`; the same on every rank.
        scale: For `"fp8_static"`: float32, of one element. It is read early, as weights are.
        eps: As for `all_reduce_rms_norm`.
        weight_bias: As for `all_reduce_rms_norm`.
        with_norm: Whether the normalised rows are wanted too. They are, if `norm_out` is given.
        out: Where the quantised rows go: shape of `input`, `torch.float8_e4m3fn`. None to allocate it.
        scale_out: Where the scales go: `[..., 1]` or `[..., hidden // 128]`, float32. None to allocate it; column-major
            ones must have the strides that it would have then.
        residual_out: As for `all_reduce_rms_norm`.
        norm_out: Where the normalised rows go, like `input`; may be `input`.
        algorithm: As for `all_reduce_rms_norm`.

    Returns:
        `(out, scales, residual_out, norm_out)`: the scales are `scale`, where that is given, and `norm_out` is None,
        where it is not wanted. The same bits on every rank.
    """
    with_norm = with_norm or norm_out is not None
    if must_dispatch(input):
        check_apart("norm_out", norm_out, "residual_out", residual_out)
        outputs = torch.ops.lamport_rs.all_reduce_rms_norm_quant(
            input, residual, weight, table_of(workspace), quant_format, scale, eps, weight_bias, with_norm, algorithm
        )
        return (
            copy_to("out", out, outputs[0]),
            copy_to("scale_out", scale_out, outputs[1]) if scale is None else scale,
            copy_to("residual_out", residual_out, outputs[2]),
            copy_to("norm_out", norm_out, outputs[3]) if with_norm else None,
        )
    written, scales, summed, normalised = run_all_reduce_rms_norm_quant(
        input,
        residual,
        weight,
        workspace,
        quant_format,
        scale,
        eps,
        weight_bias,
        with_norm,
        algorithm,
        out,
        scale_out,
        residual_out,
        norm_out,
    )
    return written, scales if scale is None else scale, summed, normalised if with_norm else None


def run_all_reduce_rms_norm_quant(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    quant_format: QuantFormat,
    scale: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    with_norm: bool = False,
    algorithm: Algorithm = "auto",
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    norm_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`all_reduce_rms_norm_quant`, without a tracer. What is not computed comes back empty."""
    core = core_of(workspace)
    given = (out, scale_out, residual_out, norm_out)
    try:
        check_tensor("input", input)
        out, scale_out, residual_out, norm_out = empty_results(
            input, quant_format, scale, with_norm, out, scale_out, residual_out, norm_out
        )
        _core.all_reduce_rms_norm_quant(
            input,
            residual,
            weight,
            core,
            quant_format,
            scale,
            eps,
            weight_bias,
            with_norm,
            algorithm,
            out,
            scale_out,
            residual_out,
            norm_out,
        )
    except BaseException as error:
        out, scale_out, residual_out, norm_out = RMS_NORM_QUANT.recover(
            error,
            (input, residual, weight, core, quant_format, scale, eps, weight_bias, with_norm, algorithm),
            given,
        )
    for each in given:
        if each is not None and not each.is_inference():
            increment_version(each)
    if is_grad_enabled():
        warn_of_lost_gradient("all_reduce_rms_norm_quant", input, residual, weight, scale)
    return out, scale_out, residual_out, norm_out


def empty_results(
    input: torch.Tensor,  # noqa: A002
    quant_format: str,
    scale: torch.Tensor | None,
    with_norm: bool,
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    norm_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(out, scales, residual_out, norm_out)`, those that are not given allocated; empty where there is nothing."""
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
    if residual_out is None:
        residual_out = empty_dense(input)
    if norm_out is None:
        norm_out = empty_dense(input) if with_norm else input.new_empty(0)
    return out, scale_out, residual_out, norm_out


def _empty_scales(input: torch.Tensor, quant_format: str) -> torch.Tensor:  # noqa: A002
    group = _GROUPS[quant_format]
    columns = input.shape[-1] if input.dim() > 0 else 0
    shape: Sequence[int] = (0,) if group is None else (*input.shape[:-1], columns // group if group else 1)
    if quant_format != _COLUMN_MAJOR:
        return torch.empty(shape, dtype=torch.float32, device=input.device)
    strides: list[int] = []
    rows = 1
    for size in reversed(input.shape[:-1]):
        strides.insert(0, rows)
        rows = rows * size
    aligned = (rows + _SCALE_ALIGNMENT - 1) // _SCALE_ALIGNMENT * _SCALE_ALIGNMENT
    return torch.empty_strided(shape, (*strides, aligned), dtype=torch.float32, device=input.device)


def _quantise(rows: torch.Tensor, quant_format: str, out: torch.Tensor, scale: torch.Tensor) -> None:
    """Quantise normalised rows with torch: for a group of one rank on a GPU."""
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


def _empty_outputs(
    input: torch.Tensor,  # noqa: A002
    _residual: object,
    _weight: object,
    _workspace: object,
    quant_format: str,
    scale: torch.Tensor | None = None,
    _eps: float = 0.0,
    _weight_bias: float = 0.0,
    with_norm: bool = False,
    *_others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return empty_results(input, quant_format, scale, with_norm)


def _left_as_it_lies(
    _input: object, _residual: object, _weight: object, _core: object, quant_format: str, *_: Any
) -> list[str]:
    """Scales that are not row-major must lie as they do."""
    return ["scale_out"] if quant_format == _COLUMN_MAJOR else []


def _alone(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    _core: object,
    quant_format: str,
    scale: torch.Tensor | None,
    eps: float,
    weight_bias: float,
    with_norm: bool,
    _algorithm: str,
    out: torch.Tensor,
    scale_out: torch.Tensor,
    residual_out: torch.Tensor,
    norm_out: torch.Tensor,
) -> None:
    rows = norm_out if with_norm else empty_dense(input)
    normalise_sum(input, residual, weight, eps, weight_bias, rows, residual_out)
    _quantise(rows, quant_format, out, scale_out if scale is None else scale)


RMS_NORM_QUANT = Collective(
    "all_reduce_rms_norm_quant",
    _empty_outputs,
    _alone,
    read_early=("weight", "scale"),
    left_as_it_lies=_left_as_it_lies,
)
run_all_reduce_rms_norm_quant = with_range("all_reduce_rms_norm_quant", run_all_reduce_rms_norm_quant)
