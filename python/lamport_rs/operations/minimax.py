"""The norm of rows that are spread over the ranks, as MiniMax's attention has it."""

from __future__ import annotations

from typing import Any, NoReturn, SupportsIndex

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version

from lamport_rs import _core
from lamport_rs._core import LamportLayoutError, LamportSingleRankError
from lamport_rs.autograd import check_history, warn_of_lost_gradient
from lamport_rs.layout import check_tensor, empty_dense
from lamport_rs.observation import log_fault, with_range
from lamport_rs.operations.collective import (
    Collective,
    call_operator,
    copy_to,
    core_of,
    empty_like_input,
    explain,
    table_of,
)
from lamport_rs.operations.refusals import refuse_misfit, takes_misfits
from lamport_rs.single_rank import normalise, normalise_pair
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace


@takes_misfits
def minimax_allreduce_rms(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    norm_weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    rank: int,
    nranks: int,
    eps: float,
    *_surplus: NoReturn,
    out: torch.Tensor | None = None,
    **_unknown: NoReturn,
) -> torch.Tensor:
    """Normalise rows that are spread over the ranks by the root mean square of the whole row.

    Per row, `out = input / sqrt(sum over ranks and columns of input ** 2 / (nranks * width) + eps) * norm_weight`
    (`MiniMaxText01RMSNormTP` of vLLM). Only one float32 per row travels.

    Args:
        input: This rank's columns of the rows, `[..., width]`, `width` a multiple of 8: float32, float16 or bfloat16.
            Rows that lie apart evenly, at multiples of 16 bytes, are not copied.
        norm_weight: This rank's columns of the weight, `[width]`, dtype of `input` or float32.
        workspace: The group's workspace, or its table.
        rank: This rank; checked against the workspace.
        nranks: Ranks in the group; checked against the workspace.
        eps: Added to the mean of squares.
        out: Where the rows go: shape and dtype of `input`. None to allocate it.

    Returns:
        The normalised rows, which are `out` if that was passed.

    Raises:
        LamportError: As for `all_reduce`, and if `rank` or `nranks` are not the workspace's.
    """
    if _surplus or _unknown:
        refuse_misfit(minimax_allreduce_rms, (input, norm_weight, workspace, rank, nranks, eps), _surplus, _unknown)
    if must_dispatch(input):
        arguments = (input, norm_weight, table_of(workspace), rank, nranks, eps)
        return copy_to("out", out, call_operator("minimax_allreduce_rms", workspace, arguments))
    return run_minimax_rms(input, norm_weight, workspace, rank, nranks, eps, out)


@takes_misfits
def minimax_allreduce_rms_qk(
    qkv: torch.Tensor,
    norm_weight_q: torch.Tensor,
    norm_weight_k: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    q_size: int,
    kv_size: int,
    rank: int,
    nranks: int,
    eps: float,
    *_surplus: NoReturn,
    q_out: torch.Tensor | None = None,
    k_out: torch.Tensor | None = None,
    **_unknown: NoReturn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do `minimax_allreduce_rms` for Q and K at once, out of a packed qkv.

    Argument for argument like vLLM's operator of this name.

    Args:
        qkv: Rows of `[q | k | ...]`, `[..., at least q_size + kv_size]`: float32, float16 or bfloat16. Rows that lie
            apart evenly, at multiples of 16 bytes, are not copied.
        norm_weight_q: This rank's columns of Q's weight, `[q_size]`, dtype of `qkv` or float32.
        norm_weight_k: This rank's columns of K's weight, `[kv_size]`, likewise.
        workspace: The group's workspace, or its table.
        q_size: This rank's columns of Q, a multiple of 8.
        kv_size: This rank's columns of K, a multiple of 8.
        rank: This rank; checked against the workspace.
        nranks: Ranks in the group; checked against the workspace.
        eps: Added to the mean of squares.
        q_out: Where Q goes: `[..., q_size]`, dtype of `qkv`. None to allocate it.
        k_out: Where K goes: `[..., kv_size]`, likewise.

    Returns:
        `(q_out, k_out)`.

    Raises:
        LamportError: As for `minimax_allreduce_rms`.
    """
    if _surplus or _unknown:
        refuse_misfit(
            minimax_allreduce_rms_qk,
            (qkv, norm_weight_q, norm_weight_k, workspace, q_size, kv_size, rank, nranks, eps),
            _surplus,
            _unknown,
        )
    if must_dispatch(qkv):
        table = table_of(workspace)
        arguments = (qkv, norm_weight_q, norm_weight_k, table, q_size, kv_size, rank, nranks, eps)
        outputs = call_operator("minimax_allreduce_rms_qk", workspace, arguments, q_out=q_out, k_out=k_out)
        return copy_to("q_out", q_out, outputs[0]), copy_to("k_out", k_out, outputs[1])
    return run_minimax_rms_qk(
        qkv, norm_weight_q, norm_weight_k, workspace, q_size, kv_size, rank, nranks, eps, q_out, k_out
    )


def run_minimax_rms(
    input: torch.Tensor,  # noqa: A002
    norm_weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    rank: int,
    nranks: int,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`minimax_allreduce_rms`, without a tracer."""
    given = out
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    try:
        try:
            if out is not None and is_grad_enabled():
                check_history(input, out=out)
            if out is None:
                out = empty_dense(input)
            _core.minimax_allreduce_rms(input, norm_weight, core, rank, nranks, eps, out)
        except (LamportLayoutError, LamportSingleRankError):
            (out,) = MINIMAX.run_on_copies((input, norm_weight, core, rank, nranks, eps), (out,))
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        _core.note_refusal(core, input, norm_weight, rank)
        log_fault(error)
        raise
    if given is not None and not given.is_inference():
        increment_version(given)
    if is_grad_enabled():
        warn_of_lost_gradient("minimax_allreduce_rms", input, norm_weight)
    return out


def run_minimax_rms_qk(
    qkv: torch.Tensor,
    norm_weight_q: torch.Tensor,
    norm_weight_k: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    q_size: int,
    kv_size: int,
    rank: int,
    nranks: int,
    eps: float,
    q_out: torch.Tensor | None = None,
    k_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`minimax_allreduce_rms_qk`, without a tracer."""
    given_q, given_k = q_out, k_out
    core = (type(workspace) is LamportWorkspace and workspace._core) or core_of(workspace)
    try:
        try:
            if (q_out is not None or k_out is not None) and is_grad_enabled():
                check_history(qkv, q_out=q_out, k_out=k_out)
            check_tensor("qkv", qkv)
            if q_out is None:
                q_out = _empty_part(qkv, "q_size", q_size)
            if k_out is None:
                k_out = _empty_part(qkv, "kv_size", kv_size)
            _core.minimax_allreduce_rms_qk(
                qkv, norm_weight_q, norm_weight_k, core, q_size, kv_size, rank, nranks, eps, q_out, k_out
            )
        except (LamportLayoutError, LamportSingleRankError):
            # Rows of other columns beside Q and K may begin at places that no copy of them all would mend.
            qkv = qkv[..., : q_size + kv_size]
            q_out, k_out = MINIMAX_QK.run_on_copies(
                (qkv, norm_weight_q, norm_weight_k, core, q_size, kv_size, rank, nranks, eps), (q_out, k_out)
            )
        except (TypeError, RuntimeError) as error:
            explain(error, "qkv", qkv)
            raise
    except BaseException as error:
        _core.note_refusal(core, qkv, norm_weight_q, norm_weight_k, q_size)
        log_fault(error)
        raise
    if given_q is not None and not given_q.is_inference():
        increment_version(given_q)
    if given_k is not None and not given_k.is_inference():
        increment_version(given_k)
    if is_grad_enabled():
        warn_of_lost_gradient("minimax_allreduce_rms_qk", qkv, norm_weight_q, norm_weight_k)
    return q_out, k_out


def _empty_part(qkv: torch.Tensor, name: str, size: int) -> torch.Tensor:
    """Rows of `size` columns, which are refused by the core if qkv does not hold them, and not allocated before."""
    columns = qkv.shape[-1] if qkv.dim() > 0 else 0
    try:
        return qkv.new_empty((*qkv.shape[:-1], min(max(size, 0), columns)))
    except TypeError as error:
        if isinstance(size, SupportsIndex):
            raise
        raise TypeError(f"argument '{name}': must be an integer, not {type(size).__name__}") from error


def _empty_pair(
    qkv: torch.Tensor,
    _weight_q: object,
    _weight_k: object,
    _workspace: object,
    q_size: int,
    kv_size: int,
    *_others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = qkv.shape[:-1]
    return qkv.new_empty((*rows, q_size)), qkv.new_empty((*rows, kv_size))


def _without_peers(
    input: torch.Tensor,  # noqa: A002
    norm_weight: torch.Tensor,
    _core: object,
    _rank: int,
    _nranks: int,
    eps: float,
    out: torch.Tensor,
) -> None:
    normalise(input, norm_weight, eps, out)


def _pair_without_peers(
    qkv: torch.Tensor,
    norm_weight_q: torch.Tensor,
    norm_weight_k: torch.Tensor,
    _core: object,
    q_size: int,
    kv_size: int,
    _rank: int,
    _nranks: int,
    eps: float,
    q_out: torch.Tensor,
    k_out: torch.Tensor,
) -> None:
    normalise_pair(qkv, q_size, kv_size, (norm_weight_q, norm_weight_k), eps, (q_out, k_out))


MINIMAX = Collective("minimax_allreduce_rms", empty_like_input, _without_peers, read_early=("norm_weight",))
MINIMAX_QK = Collective(
    "minimax_allreduce_rms_qk", _empty_pair, _pair_without_peers, read_early=("norm_weight_q", "norm_weight_k")
)
run_minimax_rms = with_range("minimax_allreduce_rms", run_minimax_rms)
run_minimax_rms_qk = with_range("minimax_allreduce_rms_qk", run_minimax_rms_qk)
