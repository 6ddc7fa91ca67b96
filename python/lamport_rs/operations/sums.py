"""The sum over ranks."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version

from lamport_rs import _core
from lamport_rs._core import LamportLayoutError, LamportSingleRankError
from lamport_rs.autograd import check_history, warn_of_lost_gradient
from lamport_rs.observation import log_fault, with_range
from lamport_rs.operations.collective import (
    Algorithm,
    Collective,
    call_operator,
    copy_to,
    core_of,
    empty_like_input,
    explain,
    table_of,
)
from lamport_rs.operations.refusals import refuse_misfit, takes_misfits
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace


@takes_misfits
def all_reduce(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    workspace: LamportWorkspace | torch.Tensor,
    out: torch.Tensor | None = None,
    *_surplus: NoReturn,
    algorithm: Algorithm = "auto",
    **_unknown: NoReturn,
) -> torch.Tensor:
    """Sum `input` over the ranks.

    `out = round(sum over ranks of float32(input))`, the sum taken in rank order and rounded once to `input`'s dtype.

    Args:
        input: This rank's tensor, of any shape and size: float32, float16 or bfloat16.
        workspace: The group's workspace, or its table.
        out: Where the sum goes: shape and dtype of `input`; may be `input`. None to allocate it.
        algorithm: `"one_shot"`, `"two_shot"`, or `"auto"` for what was measured to be faster; the same on every rank.

    Returns:
        The sum, which is `out` if that was passed; the same bits on every rank.

    Raises:
        LamportError: If the workspace cannot take the operands. Nothing was sent.
        LamportTimeoutError: If a peer did not come in time.
        LamportMismatchError: If the ranks call different operations.
        LamportAbortedError: If a rank has aborted, failed, ended or cleaned up.
    """
    if _surplus or _unknown:
        refuse_misfit(all_reduce, (input, workspace, out), _surplus, _unknown)
    if must_dispatch(input):
        return copy_to("out", out, call_operator("all_reduce", workspace, (input, table_of(workspace), algorithm)))
    return run_all_reduce(input, workspace, algorithm, out)


def run_all_reduce(
    input: torch.Tensor,  # noqa: A002
    workspace: LamportWorkspace | torch.Tensor,
    algorithm: Algorithm = "auto",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`all_reduce`, without a tracer."""
    given = out
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    try:
        try:
            if out is not None and is_grad_enabled():
                check_history(input, out=out)
            if out is None:
                out = torch.empty_like(input)
            _core.all_reduce(input, core, algorithm, out)
        except (LamportLayoutError, LamportSingleRankError):
            # What was allocated may go: its layout is that of the input.
            out = given
            (out,) = SUM.run_on_copies((input, core, algorithm), (given,))
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        _core.note_refusal(core, input, out)
        log_fault(error)
        raise
    if given is not None and not given.is_inference():
        increment_version(given)
    if is_grad_enabled():
        warn_of_lost_gradient("all_reduce", input)
    return out


def run_all_reduce_in_place(tensor: torch.Tensor, workspace: LamportWorkspace) -> None:
    """`all_reduce` of `tensor` into itself, as torch's own collectives do it: autograd hears nothing."""
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    try:
        try:
            _core.all_reduce(tensor, core, "auto", tensor)
        except LamportLayoutError:
            SUM.run_on_copies((tensor, core, "auto"), (tensor,))
        except (TypeError, RuntimeError) as error:
            explain(error, "tensor", tensor)
            raise
    except BaseException as error:
        _core.note_refusal(core, tensor)
        log_fault(error)
        raise


SUM = Collective("all_reduce", empty_like_input)
run_all_reduce = with_range("all_reduce", run_all_reduce)
run_all_reduce_in_place = with_range("all_reduce", run_all_reduce_in_place)
