"""The sum over ranks of rows, quantised: what an FP8 product takes, in one pass over memory."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version

from lamport_rs import _core
from lamport_rs._core import HELD_COLUMNS, LamportLayoutError, LamportSingleRankError
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
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace


@takes_misfits
def all_reduce_quant(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    workspace: LamportWorkspace | torch.Tensor,
    quant_format: QuantFormat,
    scale: torch.Tensor | None = None,
    *_surplus: NoReturn,
    with_sum: bool = False,
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
    sum_out: torch.Tensor | None = None,
    algorithm: Algorithm = "auto",
    **_unknown: NoReturn,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Sum `input` over the ranks, and quantise the rows of the sum.

    The sum is rounded to `input`'s dtype first, as `all_reduce` has it, and then quantised as if that were an operation
    of its own: by the formulas of `all_reduce_rms_norm_quant`.

    Args:
        input: This rank's tensor, `[..., hidden]`: float16 or bfloat16; `hidden` a multiple of 8, and of the columns
            that share a scale.
        workspace: The group's workspace, or its table.
        quant_format: See `QuantFormat`; the same on every rank.
        scale: Where the format has one that is given: float32, of one element, the same on every rank. On a GPU it is
            read early: the kernel just before must not write it.
        with_sum: Whether the sum is wanted too. It is, if `sum_out` is given.
        out: Where the quantised rows go, in the format's shape and dtype. None to allocate it.
        scale_out: Where the scales go that are computed, likewise. None to allocate it; scales that are not row-major
            must have the strides that it would have then.
        sum_out: Where the sum goes, like `input`; may be `input`. None to allocate it.
        algorithm: As for `all_reduce_rms_norm`: of whole rows, and two-shot for GPUs only.

    Returns:
        `(out, scales, sum_out)`: the scales are `scale`, where none are computed, and `sum_out` is None, where it is
        not wanted. The same bits on every rank.

    Raises:
        LamportSizeError: On a GPU, if a slot has no room for one row of every rank. The text gives the size that does.
        LamportError: As for `all_reduce`, its subclasses among them.
    """
    if _surplus or _unknown:
        refuse_misfit(all_reduce_quant, (input, workspace, quant_format, scale), _surplus, _unknown)
    if with_sum is not True and (with_sum is not False or sum_out is not None):
        with_sum = is_wanted(with_sum, sum_out, workspace)
    if must_dispatch(input):
        arguments = (input, table_of(workspace), quant_format, scale, with_sum, algorithm)
        outputs = call_operator(
            "all_reduce_quant",
            workspace,
            arguments,
            lambda: check_scale_out(quant_format, scale_out),
            out=out,
            scale_out=scale_out,
            sum_out=sum_out,
        )
        return (
            copy_to("out", out, outputs[0]),
            scales_of(quant_format, scale, copy_to("scale_out", scale_out, outputs[1])),
            copy_to("sum_out", sum_out, outputs[2]) if with_sum else None,
        )
    written, scales, summed = run_all_reduce_quant(
        input, workspace, quant_format, scale, with_sum, algorithm, out, scale_out, sum_out
    )
    scales = scales_of(quant_format, scale, scales)
    return written, scales, summed if with_sum else None


def run_all_reduce_quant(
    input: torch.Tensor,  # noqa: A002
    workspace: LamportWorkspace | torch.Tensor,
    quant_format: QuantFormat,
    scale: torch.Tensor | None = None,
    with_sum: bool = False,
    algorithm: Algorithm = "auto",
    out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
    sum_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`all_reduce_quant`, without a tracer. A sum that is not asked for is empty, or of no use."""
    given = (out, scale_out, sum_out)
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    try:
        try:
            if is_grad_enabled():
                check_history(input, scale_out=scale_out, sum_out=sum_out)
            check_tensor("input", input)
            out, scale_out = empty_quantised(input, quant_format, scale, out, scale_out)
            if sum_out is None:
                sum_out = _empty_sum(input, with_sum)
            _core.all_reduce_quant(input, core, quant_format, scale, with_sum, algorithm, out, scale_out, sum_out)
        except (LamportLayoutError, LamportSingleRankError):
            # Those that were allocated will do.
            out, scale_out, sum_out = SUM_QUANT.run_on_copies(
                (input, core, quant_format, scale, with_sum, algorithm), (out, scale_out, sum_out)
            )
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        _core.note_refusal(core, input, quant_format, scale)
        log_fault(error)
        raise
    for each in given:
        if each is not None and not each.is_inference():
            increment_version(each)
    if is_grad_enabled():
        warn_of_lost_gradient("all_reduce_quant", input, scale)
    return out, scale_out, sum_out


def _empty_sum(input: torch.Tensor, with_sum: bool) -> torch.Tensor:  # noqa: A002
    """Allocate the sum. A kernel that does not hold wide rows in registers has a use for it, asked for or not."""
    is_wide = input.dim() > 0 and input.shape[-1] > HELD_COLUMNS
    return empty_dense(input) if with_sum or is_wide else input.new_empty(0)


def _empty_outputs(
    input: torch.Tensor,  # noqa: A002
    _workspace: object,
    quant_format: str,
    scale: torch.Tensor | None = None,
    with_sum: bool = False,
    *_others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *empty_quantised(input, quant_format, scale), _empty_sum(input, with_sum)


def _left_as_it_lies(_input: object, _core: object, quant_format: str, *_: Any) -> list[str]:
    """Scales that are not row-major must lie as they do."""
    return ["scale_out"] if must_lie_as_allocated(quant_format) else []


def _without_peers(
    input: torch.Tensor,  # noqa: A002
    _core: object,
    quant_format: str,
    scale: torch.Tensor | None,
    with_sum: bool,
    _algorithm: str,
    out: torch.Tensor,
    scale_out: torch.Tensor,
    sum_out: torch.Tensor,
) -> None:
    quantise(input, quant_format, out, scale, scale_out)
    if with_sum:
        with torch.inference_mode():
            sum_out.copy_(input)


SUM_QUANT = Collective(
    "all_reduce_quant", _empty_outputs, _without_peers, read_early=("scale",), left_as_it_lies=_left_as_it_lies
)
run_all_reduce_quant = with_range("all_reduce_quant", run_all_reduce_quant)
