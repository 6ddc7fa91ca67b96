"""The sum over ranks, a residual and the layer norm of the rows."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version
from torch.nn.functional import layer_norm

from lamport_rs import _core
from lamport_rs._core import LamportLayoutError, LamportSingleRankError
from lamport_rs.autograd import check_history, warn_of_lost_gradient
from lamport_rs.observation import log_fault, with_range
from lamport_rs.operations.collective import Algorithm, Collective, call_operator, copy_to, core_of, explain, table_of
from lamport_rs.operations.refusals import refuse_misfit, takes_misfits
from lamport_rs.operations.rms_norm import empty_rows
from lamport_rs.single_rank import add_residual
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace


@takes_misfits
def all_reduce_layer_norm(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *_surplus: NoReturn,
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    algorithm: Algorithm = "auto",
    **_unknown: NoReturn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum `input` over the ranks, add `residual`, and normalise the rows by their mean and variance.

    `residual_out = sum over ranks of input + residual`, and per row
    `out = (residual_out - mean) / sqrt(variance + eps) * weight + bias`, with the mean of the row and the mean of the
    squares of what it is subtracted from: `torch.nn.functional.layer_norm`. The sum is rounded to the dtype once, and
    the norm is of the rounded rows, as if it were an operation of its own.

    Args:
        input: This rank's tensor, `[..., hidden]`, `hidden` a multiple of 8: float16 or bfloat16.
        residual: `[..., hidden]`, dtype of `input`, the same on every rank. None to add nothing.
        weight: `[hidden]`, dtype of `input` or float32, the same on every rank.
        workspace: The group's workspace, or its table.
        bias: `[hidden]`, dtype of `weight`, the same on every rank. None to add nothing.
        eps: Added to the variance.
        out: Where the normalised rows go, like `input`; may be `input`. None to allocate it.
        residual_out: Where the sum goes, like `input`; may be `residual`, or `input`. None to allocate it.
        algorithm: `"auto"` or `"one_shot"`, which are the same: there is no kernel of two shots.

    Returns:
        `(out, residual_out)`; the same bits on every rank.

    Raises:
        LamportSizeError: On a GPU, if a slot has no room for one row of every rank. The text gives the size that does.
        LamportError: As for `all_reduce`, its subclasses among them.
    """
    if _surplus or _unknown:
        refuse_misfit(all_reduce_layer_norm, (input, residual, weight, workspace, bias, eps), _surplus, _unknown)
    if must_dispatch(input):
        arguments = (input, residual, weight, table_of(workspace), bias, eps, algorithm)
        outputs = call_operator("all_reduce_layer_norm", workspace, arguments, out=out, residual_out=residual_out)
        return copy_to("out", out, outputs[0]), copy_to("residual_out", residual_out, outputs[1])
    return run_all_reduce_layer_norm(input, residual, weight, workspace, bias, eps, algorithm, out, residual_out)


def run_all_reduce_layer_norm(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    algorithm: Algorithm = "auto",
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`all_reduce_layer_norm`, without a tracer."""
    given, given_residual = out, residual_out
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    try:
        try:
            if (out is not None or residual_out is not None) and is_grad_enabled():
                check_history(input, residual, out=out, residual_out=residual_out)
            if out is None:
                out = torch.empty_like(input)
            if residual_out is None:
                residual_out = torch.empty_like(input)
            _core.all_reduce_layer_norm(input, residual, weight, core, bias, eps, algorithm, out, residual_out)
        except (LamportLayoutError, LamportSingleRankError):
            # What was allocated may go: its layout is that of the input.
            out, residual_out = given, given_residual
            out, residual_out = LAYER_NORM.run_on_copies(
                (input, residual, weight, core, bias, eps, algorithm), (given, given_residual)
            )
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        _core.note_refusal(core, input, residual, weight, bias, eps)
        log_fault(error)
        raise
    if given is not None and not given.is_inference():
        increment_version(given)
    if given_residual is not None and not given_residual.is_inference():
        increment_version(given_residual)
    if is_grad_enabled():
        warn_of_lost_gradient("all_reduce_layer_norm", input, residual, weight, bias)
    return out, residual_out


def layer_normalise_sum(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None:
    """The operation in a group of one rank, by torch."""
    with torch.inference_mode():
        add_residual(input, residual, residual_out)
        wide_bias = None if bias is None else bias.float()
        out.copy_(layer_norm(residual_out.float(), weight.shape, weight.float(), wide_bias, eps))


def _without_peers(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    _core: object,
    bias: torch.Tensor | None,
    eps: float,
    _algorithm: str,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None:
    layer_normalise_sum(input, residual, weight, bias, eps, out, residual_out)


LAYER_NORM = Collective("all_reduce_layer_norm", empty_rows, _without_peers, read_early=("weight", "bias"))
run_all_reduce_layer_norm = with_range("all_reduce_layer_norm", run_all_reduce_layer_norm)
