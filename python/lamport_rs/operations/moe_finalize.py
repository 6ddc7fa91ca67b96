"""The sum over ranks of rows that a layer's experts made, alone, and with a residual and the norm of the rows."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version

from lamport_rs import _core
from lamport_rs._core import LamportLayoutError, LamportSingleRankError
from lamport_rs.autograd import check_history, warn_of_lost_gradient
from lamport_rs.layout import check_tensor
from lamport_rs.observation import log_fault, with_range
from lamport_rs.operations.collective import Collective, call_operator, copy_to, core_of, explain, table_of
from lamport_rs.operations.refusals import refuse_misfit, takes_misfits
from lamport_rs.single_rank import finalise, normalise_sum
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace


@takes_misfits
def moe_finalize_all_reduce(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    shared_rows: torch.Tensor | None = None,
    *_surplus: NoReturn,
    out: torch.Tensor | None = None,
    **_unknown: NoReturn,
) -> torch.Tensor:
    """Make each token's row of the rows that this rank's experts made, and sum these rows over the ranks.

    `row = sum over j of expert_weights[token, j] * expert_rows[row_index[token, j]] + shared_rows[token]`, in float32
    with `j` ascending, each product and each sum rounded, and the row rounded once to the dtype of `expert_rows`; then
    `out` is what `all_reduce` makes of these rows in one shot, and on a GPU they are not written to memory in between.

    Args:
        expert_rows: What the experts of this rank made, `[rows, hidden]`, in any order; `hidden` a multiple of 8:
            float16 or bfloat16. There may be no row, and each rank may have another number of them.
        row_index: `[..., k]`, int32: for each token, the rows that are its own. An index of -1 adds nothing, whatever
            its weight: an expert of another rank. Any other that is not in `0 ... rows - 1` is not read, and makes the
            token's row NaN, on every rank. `k` is at least 1, and may differ between ranks.
        expert_weights: Like `row_index`, dtype of `expert_rows` or float32.
        workspace: The group's workspace, or its table.
        shared_rows: A shared expert's rows, `[..., hidden]`, dtype of `expert_rows`. None, on any rank, to add nothing.
        out: Where the sum goes, like `shared_rows`; may be none of the operands. None to allocate it.

    Returns:
        The sum, `[..., hidden]`; the same bits on every rank.

    Raises:
        LamportSizeError: On a GPU, if a slot has no room for one row of every rank. The text gives the size that does.
        LamportError: As for `all_reduce`, its subclasses among them.
    """
    if _surplus or _unknown:
        refuse_misfit(
            moe_finalize_all_reduce,
            (expert_rows, row_index, expert_weights, workspace, shared_rows),
            _surplus,
            _unknown,
        )
    if must_dispatch(expert_rows):
        arguments = (expert_rows, row_index, expert_weights, table_of(workspace), shared_rows)
        return copy_to("out", out, call_operator("moe_finalize_all_reduce", workspace, arguments))
    return run_moe_finalize(expert_rows, row_index, expert_weights, workspace, shared_rows, out)


@takes_misfits
def moe_finalize_all_reduce_rms_norm(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    shared_rows: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    *_surplus: NoReturn,
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    **_unknown: NoReturn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make each token's row as `moe_finalize_all_reduce` does, and of these rows what `all_reduce_rms_norm` does.

    Args:
        expert_rows: As for `moe_finalize_all_reduce`.
        row_index: As for `moe_finalize_all_reduce`.
        expert_weights: As for `moe_finalize_all_reduce`.
        residual: `[..., hidden]`, dtype of `expert_rows`, the same on every rank. None to add nothing.
        weight: `[hidden]`, dtype of `expert_rows` or float32, the same on every rank.
        workspace: The group's workspace, or its table.
        shared_rows: As for `moe_finalize_all_reduce`.
        eps: Added to the mean of squares.
        weight_bias: Added to each weight: 1.0 for models that keep weights as their distance from 1 (Gemma).
        out: Where the normalised rows go, `[..., hidden]`; may be none of the operands. None to allocate it.
        residual_out: Where the sum goes, likewise, but may be `residual`. None to allocate it.

    Returns:
        `(out, residual_out)`; the same bits on every rank.

    Raises:
        LamportSizeError: On a GPU, if a slot has no room for one row of every rank. The text gives the size that does.
        LamportError: As for `all_reduce`, its subclasses among them.
    """
    if _surplus or _unknown:
        refuse_misfit(
            moe_finalize_all_reduce_rms_norm,
            (expert_rows, row_index, expert_weights, residual, weight, workspace, shared_rows, eps, weight_bias),
            _surplus,
            _unknown,
        )
    if must_dispatch(expert_rows):
        experts = expert_rows, row_index, expert_weights
        arguments = (*experts, residual, weight, table_of(workspace), shared_rows, eps, weight_bias)
        outputs = call_operator(
            "moe_finalize_all_reduce_rms_norm", workspace, arguments, out=out, residual_out=residual_out
        )
        return copy_to("out", out, outputs[0]), copy_to("residual_out", residual_out, outputs[1])
    return run_moe_finalize_rms_norm(
        expert_rows,
        row_index,
        expert_weights,
        residual,
        weight,
        workspace,
        shared_rows,
        eps,
        weight_bias,
        out,
        residual_out,
    )


def run_moe_finalize(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    shared_rows: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`moe_finalize_all_reduce`, without a tracer."""
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    arguments = (expert_rows, row_index, expert_weights, core, shared_rows)
    (out,) = _run(FINALIZE, core, arguments, (out,))
    return out


def run_moe_finalize_rms_norm(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    shared_rows: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`moe_finalize_all_reduce_rms_norm`, without a tracer."""
    experts = (expert_rows, row_index, expert_weights)
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    arguments = (*experts, residual, weight, core, shared_rows, eps, weight_bias)
    out, residual_out = _run(FINALIZE_RMS_NORM, core, arguments, (out, residual_out))
    return out, residual_out


def _run(
    collective: Collective,
    core: Any,
    arguments: tuple[Any, ...],
    given: tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor, ...]:
    """Call the core. Outputs that are not given are allocated."""
    expert_rows, row_index, *_ = arguments
    try:
        try:
            if is_grad_enabled():
                # No input can be an output, but the residual.
                check_history(*collective.inputs(arguments), **dict(zip(collective.outputs, given, strict=True)))
            check_tensor("expert_rows", expert_rows)
            check_tensor("row_index", row_index)
            outputs = tuple(_empty_rows(expert_rows, row_index) if each is None else each for each in given)
            getattr(_core, collective.name)(*arguments, *outputs)
        except (LamportLayoutError, LamportSingleRankError):
            # What was allocated will do.
            outputs = collective.run_on_copies(arguments, outputs)
        except (TypeError, RuntimeError) as error:
            explain(error, "expert_rows", expert_rows)
            raise
    except BaseException as error:
        _core.note_refusal(core, *arguments)
        log_fault(error)
        raise
    for each in given:
        if each is not None and not each.is_inference():
            increment_version(each)
    if is_grad_enabled():
        warn_of_lost_gradient(collective.name, *collective.inputs(arguments))
    return outputs


def _empty_rows(expert_rows: torch.Tensor, row_index: torch.Tensor) -> torch.Tensor:
    return expert_rows.new_empty((*row_index.shape[:-1], *expert_rows.shape[-1:]))


def _empty_sum(expert_rows: torch.Tensor, row_index: torch.Tensor, *_others: Any) -> tuple[torch.Tensor]:
    return (_empty_rows(expert_rows, row_index),)


def _empty_norm(expert_rows: torch.Tensor, row_index: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_rows(expert_rows, row_index), _empty_rows(expert_rows, row_index)


def _sum_without_peers(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    _core: object,
    shared_rows: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    finalise(expert_rows, row_index, expert_weights, shared_rows, out)


def _norm_without_peers(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    _core: object,
    shared_rows: torch.Tensor | None,
    eps: float,
    weight_bias: float,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None:
    finalise(expert_rows, row_index, expert_weights, shared_rows, out)
    normalise_sum(out, residual, weight, eps, weight_bias, out, residual_out)


FINALIZE = Collective("moe_finalize_all_reduce", _empty_sum, _sum_without_peers)
FINALIZE_RMS_NORM = Collective(
    "moe_finalize_all_reduce_rms_norm", _empty_norm, _norm_without_peers, read_early=("weight",)
)
run_moe_finalize = with_range("moe_finalize_all_reduce", run_moe_finalize)
run_moe_finalize_rms_norm = with_range("moe_finalize_all_reduce_rms_norm", run_moe_finalize_rms_norm)
