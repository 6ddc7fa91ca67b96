"""The operations as they run: outputs allocated, the core called, and what it cannot take as it lies copied.

`lamport_rs.operations` has them for callers, and for tracers; `lamport_rs.torch_operators` as operators. Arguments are
those of the operators, and then the outputs.

No more calls than needed in what follows: it is part of every eager operation's latency. What autograd has saved for a
backward pass may be an output that is passed in, so torch has to hear that it was written. Tensors of inference mode
cannot be saved, and to ask is half as dear.

A call that raises has sent nothing, and counts all the same: if its caller goes on, this rank's next operation differs
from that of ranks whose call was served, and all raise `LamportMismatchError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias

import torch
from torch import is_grad_enabled
from torch.autograd.graph import increment_version

from lamport_rs import _core
from lamport_rs._core import LamportError, LamportLayoutError, LamportSingleRankError
from lamport_rs.autograd import warn_of_lost_gradient
from lamport_rs.layout import empty_dense, run_on_copies
from lamport_rs.observation import log_fault, with_range
from lamport_rs.single_rank import normalise, normalise_pair, normalise_sum
from lamport_rs.tracing import UNDER_TRANSFORMATION, functorch_is_active
from lamport_rs.workspace import LamportWorkspace

Operands: TypeAlias = Sequence[Any]

Algorithm: TypeAlias = Literal["auto", "one_shot", "two_shot"]
"""How a tensor is reduced.

`"one_shot"`: every rank pushes all of its tensor to every peer, and each sums for itself. One way over the link.
`"two_shot"`: every rank sums one shard and pushes the sums to every peer. Two ways, but each byte travels twice and not
once per peer. `"auto"`: the faster one by measurement, or by the workspace's `two_shot_from`, or else the one that the
workspace has room for. All give the same bits. On the host `all_reduce_rms_norm` is one-shot only.
"""


def run_all_reduce(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    workspace: LamportWorkspace | torch.Tensor,
    algorithm: Algorithm = "auto",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`all_reduce`, without a tracer."""
    given, core = out, core_of(workspace)
    try:
        try:
            if out is None:
                out = torch.empty_like(input)
            _core.all_reduce(core, input, out, algorithm)
        except LamportLayoutError:
            out = empty_dense(input) if given is None else given
            run_on_copies(
                lambda read, written: _core.all_reduce(core, read[0], written[0], algorithm), [input], [], [out]
            )
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        note_refusal(core, error)
        raise
    if given is not None and not given.is_inference():
        increment_version(given)
    if is_grad_enabled():
        warn_of_lost_gradient("all_reduce", input)
    return out


def run_all_reduce_in_place(tensor: torch.Tensor, workspace: LamportWorkspace) -> None:
    """`all_reduce` of `tensor` into itself, as torch's own collectives do it: autograd hears nothing."""
    core = core_of(workspace)
    try:
        try:
            _core.all_reduce(core, tensor, tensor, "auto")
        except LamportLayoutError:
            run_on_copies(
                lambda read, written: _core.all_reduce(core, read[0], written[0], "auto"), [tensor], [], [tensor]
            )
        except (TypeError, RuntimeError) as error:
            explain(error, "tensor", tensor)
            raise
    except BaseException as error:
        note_refusal(core, error)
        raise


def run_all_reduce_rms_norm(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    algorithm: Algorithm = "auto",
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`all_reduce_rms_norm`, without a tracer."""
    given, given_residual, core = out, residual_out, core_of(workspace)
    try:
        try:
            if out is None:
                out = torch.empty_like(input)
            if residual_out is None:
                residual_out = torch.empty_like(input)
            _core.all_reduce_rms_norm(core, input, residual, weight, eps, weight_bias, out, residual_out, algorithm)
        except (LamportLayoutError, LamportSingleRankError):
            out = empty_dense(input) if given is None else given
            residual_out = empty_dense(input) if given_residual is None else given_residual

            def operation(read: Operands, written: Operands) -> None:
                added = None if residual is None else read[1]
                try:
                    _core.all_reduce_rms_norm(
                        core, read[0], added, read[-1], eps, weight_bias, written[0], written[1], algorithm
                    )
                except LamportSingleRankError:
                    normalise_sum(read[0], added, read[-1], eps, weight_bias, written[0], written[1])

            run_on_copies(operation, [input] if residual is None else [input, residual], [weight], [out, residual_out])
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        note_refusal(core, error)
        raise
    if given is not None and not given.is_inference():
        increment_version(given)
    if given_residual is not None and not given_residual.is_inference():
        increment_version(given_residual)
    if is_grad_enabled():
        warn_of_lost_gradient("all_reduce_rms_norm", input, residual, weight)
    return out, residual_out


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
    given, core = out, core_of(workspace)
    try:
        try:
            if out is None:
                out = empty_dense(input)
            _core.minimax_rms(core, rank, nranks, input, norm_weight, eps, out)
        except (LamportLayoutError, LamportSingleRankError):
            out = empty_dense(input) if given is None else given

            def operation(read: Operands, written: Operands) -> None:
                try:
                    _core.minimax_rms(core, rank, nranks, read[0], read[1], eps, written[0])
                except LamportSingleRankError:
                    normalise(read[0], read[1], eps, written[0])

            run_on_copies(operation, [input], [norm_weight], [out])
        except (TypeError, RuntimeError) as error:
            explain(error, "input", input)
            raise
    except BaseException as error:
        note_refusal(core, error)
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
    given_q, given_k, core = q_out, k_out, core_of(workspace)
    try:
        check_tensor("qkv", qkv)
        try:
            # Sizes that qkv does not hold are refused by the core; they must not be allocated before.
            columns = qkv.shape[-1] if qkv.dim() > 0 else 0
            if q_out is None:
                q_out = qkv.new_empty((*qkv.shape[:-1], min(max(q_size, 0), columns)))
            if k_out is None:
                k_out = qkv.new_empty((*qkv.shape[:-1], min(max(kv_size, 0), columns)))
        except (TypeError, RuntimeError) as error:
            _check_size("q_size", q_size)
            _check_size("kv_size", kv_size)
            explain(error, "qkv", qkv)
            raise
        weights = (norm_weight_q, norm_weight_k)
        try:
            _core.minimax_rms_qk(core, rank, nranks, qkv, q_size, kv_size, *weights, eps, q_out, k_out)
        except (LamportLayoutError, LamportSingleRankError):

            def operation(read: Operands, written: Operands) -> None:
                packed, weight_q, weight_k = read
                try:
                    _core.minimax_rms_qk(
                        core, rank, nranks, packed, q_size, kv_size, weight_q, weight_k, eps, written[0], written[1]
                    )
                except LamportSingleRankError:
                    normalise_pair(packed, q_size, kv_size, (weight_q, weight_k), eps, (written[0], written[1]))

            run_on_copies(operation, [qkv], weights, [q_out, k_out])
        except LamportError as error:
            explain(error, "qkv", qkv)
            raise
    except BaseException as error:
        note_refusal(core, error)
        raise
    if given_q is not None and not given_q.is_inference():
        increment_version(given_q)
    if given_k is not None and not given_k.is_inference():
        increment_version(given_k)
    if is_grad_enabled():
        warn_of_lost_gradient("minimax_allreduce_rms_qk", qkv, norm_weight_q, norm_weight_k)
    return q_out, k_out


def note_refusal(core: _core.Workspace | torch.Tensor, error: BaseException) -> None:
    """Count a call that sent nothing, or tell the log of one that failed."""
    _core.note_refusal(core)
    log_fault(error)


def check_tensor(name: str, value: object) -> None:
    """Raise if `value` is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise LamportError(f"{name} must be a torch.Tensor, not {type(value).__name__}")


def _check_size(name: str, size: object) -> None:
    if not isinstance(size, SupportsIndex):
        raise TypeError(f"argument '{name}': must be an integer, not {type(size).__name__}")


def explain(error: Exception, name: str, value: torch.Tensor) -> None:
    """Raise a better error in the place of `error`, which the operation or the allocation of its output raised."""
    if functorch_is_active():
        raise LamportError(f"{name}: {UNDER_TRANSFORMATION}; call the operation outside it") from error
    if isinstance(error, LamportError):
        return
    check_tensor(name, value)
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise LamportError(f"{name} is {layout}, but must be a dense tensor") from error


def core_of(workspace: LamportWorkspace | torch.Tensor) -> _core.Workspace | torch.Tensor:
    """Return what the core knows the workspace by."""
    if type(workspace) is LamportWorkspace and workspace._core is not None:
        return workspace._core
    return workspace._usable_core() if isinstance(workspace, LamportWorkspace) else workspace


run_all_reduce = with_range("all_reduce", run_all_reduce)
run_all_reduce_in_place = with_range("all_reduce", run_all_reduce_in_place)
run_all_reduce_rms_norm = with_range("all_reduce_rms_norm", run_all_reduce_rms_norm)
run_minimax_rms = with_range("minimax_allreduce_rms", run_minimax_rms)
run_minimax_rms_qk = with_range("minimax_allreduce_rms_qk", run_minimax_rms_qk)
