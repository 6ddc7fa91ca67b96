"""The norm of a sum, quantised: what products of FP8 take, without the pass over memory that makes it of the norm."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version

from lamport_rs import _core
from lamport_rs._core import LamportLayoutError, LamportSingleRankError
from lamport_rs.autograd import check_history, warn_of_lost_gradient
from lamport_rs.layout import check_tensor, empty_dense
from lamport_rs.observation import log_fault, with_range
from lamport_rs.operations.collective import (
    Algorithm,
    Collective,
    call_operator,
    copy_to,
    core_of,
    explain,
    is_wanted,
    table_of,
)
from lamport_rs.operations.quant_formats import (
    QuantFormat,
    check_scale_out,
    empty_quantised,
    must_lie_as_allocated,
    quantise,
    scales_of,
)
from lamport_rs.operations.refusals import refuse_misfit, takes_misfits
from lamport_rs.single_rank import normalise_sum
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace


@takes_misfits
def all_reduce_rms_norm_quant(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    quant_format: QuantFormat,
    scale: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    *_surplus: NoReturn,
    with_norm: bool = False,
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    norm_out: torch.Tensor | None = None,
    algorithm: Algorithm = "auto",
    **_unknown: NoReturn,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Do `all_reduce_rms_norm`, and quantise the normalised rows.

    The rows are rounded to `input`'s dtype first, as if the quantiser were an operation of its own. `QuantFormat` has
    the formulas: what the quantising kernels of the common stacks compute. But a NaN, which their maxima pass over,
    makes the scale that it shares NaN. Float32 rows are not quantised: products of FP8 follow rows of 16 bits.

    Args:
        input: As for `all_reduce_rms_norm`, float16 or bfloat16; `hidden` a multiple of 8, and of the columns
            that share a scale.
        residual: As for `all_reduce_rms_norm`.
        weight: As for `all_reduce_rms_norm`.
        workspace: The group's workspace, or its table.
        quant_format: See `QuantFormat`; the same on every rank.
        scale: Where the format has one that is given: float32, of one element. On a GPU it is read early: the
            kernel just before must not write it.
        eps: As for `all_reduce_rms_norm`.
        weight_bias: As for `all_reduce_rms_norm`.
        with_norm: Whether the normalised rows are wanted too. They are, if `norm_out` is given.
        out: Where the quantised rows go, in the format's shape and dtype. None to allocate it.
        scale_out: Where the scales go that are computed, likewise. None to allocate it; scales that are not row-major
            must have the strides that it would have then.
        residual_out: As for `all_reduce_rms_norm`.
        norm_out: Where the normalised rows go, like `input`; may be `input`.
        algorithm: As for `all_reduce_rms_norm`.

    Returns:
        `(out, scales, residual_out, norm_out)`: the scales are `scale`, where none are computed, and `norm_out` is
        None, where it is not wanted. The same bits on every rank.
    """
    if _surplus or _unknown:
        refuse_misfit(
            all_reduce_rms_norm_quant,
            (input, residual, weight, workspace, quant_format, scale, eps, weight_bias),
            _surplus,
            _unknown,
        )
    if with_norm is not True and (with_norm is not False or norm_out is not None):
        with_norm = is_wanted(with_norm, norm_out, workspace)
    if must_dispatch(input):
        table = table_of(workspace)
        arguments = (input, residual, weight, table, quant_format, scale, eps, weight_bias, with_norm, algorithm)
        outputs = call_operator(
            "all_reduce_rms_norm_quant",
            workspace,
            arguments,
            lambda: check_scale_out(quant_format, scale_out),
            out=out,
            scale_out=scale_out,
            norm_out=norm_out,
            residual_out=residual_out,
        )
        return (
            copy_to("out", out, outputs[0]),
            scales_of(quant_format, scale, copy_to("scale_out", scale_out, outputs[1])),
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
    scales = scales_of(quant_format, scale, scales)
    return written, scales, summed, normalised if with_norm else None


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
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    given = (out, scale_out, residual_out, norm_out)
    try:
        try:
            if is_grad_enabled():
                check_history(input, residual, scale_out=scale_out, residual_out=residual_out, norm_out=norm_out)
            check_tensor("input", input)
            out, scale_out = empty_quantised(input, quant_format, scale, out, scale_out)
            if residual_out is None:
                residual_out = empty_dense(input)
            if norm_out is None:
                norm_out = empty_dense(input) if with_norm else input.new_empty(0)
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
        except (LamportLayoutError, LamportSingleRankError):
            # Those that were allocated will do.
            out, scale_out, residual_out, norm_out = RMS_NORM_QUANT.run_on_copies(
                (input, residual, weight, core, quant_format, scale, eps, weight_bias, with_norm, algorithm),
                (out, scale_out, residual_out, norm_out),
            )
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        _core.note_refusal(core, input, residual, weight, quant_format, scale)
        log_fault(error)
        raise
    for each in given:
        if each is not None and not each.is_inference():
            increment_version(each)
    if is_grad_enabled():
        warn_of_lost_gradient("all_reduce_rms_norm_quant", input, residual, weight, scale)
    return out, scale_out, residual_out, norm_out


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
    out, scale_out = empty_quantised(input, quant_format, scale)
    return out, scale_out, empty_dense(input), empty_dense(input) if with_norm else input.new_empty(0)


def _left_as_it_lies(
    _input: object, _residual: object, _weight: object, _core: object, quant_format: str, *_: Any
) -> list[str]:
    """Scales that are not row-major must lie as they do."""
    return ["scale_out"] if must_lie_as_allocated(quant_format) else []


def _without_peers(
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
    quantise(rows, quant_format, out, scale, scale_out)


RMS_NORM_QUANT = Collective(
    "all_reduce_rms_norm_quant",
    _empty_outputs,
    _without_peers,
    read_early=("weight", "scale"),
    left_as_it_lies=_left_as_it_lies,
)
run_all_reduce_rms_norm_quant = with_range("all_reduce_rms_norm_quant", run_all_reduce_rms_norm_quant)
