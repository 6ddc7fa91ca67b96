"""The collectives.

Each is a collective call: all ranks of the workspace's group make it, with tensors of the same shapes and dtypes, in
the same order. Sums are taken in float32 and in rank order, so all ranks get the same bits, on every run. So they do
where a thread flushes subnormal numbers to zero or rounds otherwise: on the host an operation computes with the default
settings, and the caller has his own back afterwards. A row's bits do not depend on how many rows share the call, nor on
where it is among them. A contribution of -0.0 counts as +0.0.

All raise `LamportError` for tensors, values and workspaces they cannot take, having changed nothing, and
`LamportTimeoutError`, naming the missing ranks, when peers do not come; after that the workspace can no longer be used.
Neither can it after a host operation was interrupted by an exception of a signal's handler, such as
`KeyboardInterrupt`, while it waited for peers (but after one that waited for another thread's operation it can).

A plain argument (a number, a name, a group) of a wrong type is a `TypeError`, as in torch, and an integer of more than
64 bits an `OverflowError`.

Tensors are on the workspace's device, aligned to 16 bytes (as torch allocates them), float32, float16 or bfloat16. An
output may be the very tensor it is computed from. None of the operations has a gradient: results do not require one,
whatever the inputs do, and an output that is passed in counts as changed in place.

On a GPU the operations run in the order of torch's current stream and overlap the start of what comes before them: the
MiniMax norms' weights are read early, so they must not be written by the kernel just before the operation. A CUDA graph
that captured an operation needs the workspace for as long as it is replayed, and its replays are ordered by the stream
they are launched on, not by the library.
"""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, TypeAlias

import torch
import torch.distributed as dist
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from lamport_rs import _core
from lamport_rs._core import LamportError, LamportSizeError
from lamport_rs.workspace import LamportWorkspace

Algorithm: TypeAlias = Literal["auto", "one_shot", "two_shot"]
"""How a tensor is reduced.

`"one_shot"`: every rank pushes all of its tensor to every peer, and each sums for itself. One way over the link.
`"two_shot"`: every rank sums one shard and pushes the sums to every peer. Two ways, but each byte travels twice and not
once per peer. `"auto"`: the faster one by measurement, or by the workspace's `two_shot_from`, or else the one that the
workspace has room for. All give the same bits. On the host `all_reduce_rms_norm` is one-shot only.
"""


def all_reduce(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    workspace: LamportWorkspace | torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    algorithm: Algorithm = "auto",
    fallback: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Sum `input` over the ranks.

    Args:
        input: This rank's tensor, of any shape, contiguous. One-shot takes `world_size` times its bytes of a slot,
            two-shot twice its bytes; `compute_comm_size_for_all_reduce` gives a `comm_size` that does for both.
        workspace: The group's workspace, or its table.
        out: Where the sum goes: shape and dtype of `input`, contiguous; may be `input`. None to allocate it.
        algorithm: See `Algorithm`; the same on every rank.
        fallback: A process group of the same ranks that sums tensors which are too large for the workspace. Its sums
            are its own: in another order perhaps, and rounded at every step. None to raise instead. With a fallback
            torch.compile breaks its graph here, whichever sums.

    Returns:
        `out`: the sum in float32 and in rank order, rounded once to `input`'s dtype; the same bits on every rank.

    Raises:
        LamportSizeError: If the workspace is too small, or the tensor has more than a GiB on a GPU, and there is no
            fallback. The text gives the size that does.
    """
    if fallback is None:
        if is_compiling():
            total: torch.Tensor = torch.ops.lamport_rs.all_reduce(input, _table_of(workspace), algorithm)
            return _copy_to("out", out, total)
    elif not isinstance(fallback, dist.ProcessGroup):
        raise TypeError(f"argument 'fallback': must be a torch process group or None, not {type(fallback).__name__}")
    given = out
    if out is None:
        out = _empty_like("input", input)
    try:
        _core.all_reduce(_core_of(workspace), input, out, algorithm)
    except LamportSizeError:
        if fallback is None:
            raise
        if out is not input:
            out.copy_(input)
        dist.all_reduce(out, group=fallback)
    if given is not None and not given.is_inference():
        increment_version(given)
    return out


def all_reduce_rms_norm(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor,
    weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    *,
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    algorithm: Algorithm = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum `input` over the ranks, add `residual`, and normalise the rows by their root mean square.

    `residual_out = sum over ranks of input + residual`, and per row
    `out = residual_out / sqrt(mean(residual_out ** 2) + eps) * (weight + weight_bias)` (RMSNorm: Zhang and Sennrich,
    2019, arXiv:1910.07467). The sum is rounded to the dtype once, and the norm is of the rounded rows, as if it were an
    operation of its own.

    Args:
        input: This rank's tensor, `[..., hidden]`, contiguous, `hidden` a multiple of 8.
        residual: `[..., hidden]`, dtype of `input`, contiguous, the same on every rank.
        weight: `[hidden]`, dtype of `input` or float32, the same on every rank.
        workspace: The group's workspace, or its table.
        eps: Added to the mean of squares.
        weight_bias: Added to each weight: 1.0 for models that keep weights as their distance from 1 (Gemma).
        out: Where the normalised rows go, like `input`; may be `input`. None to allocate it.
        residual_out: Where the sum goes, like `input`; may be `residual`. None to allocate it.
        algorithm: See `Algorithm`; the same on every rank. With `"two_shot"` each rank sums whole rows, every
            `world_size`-th; for GPUs only. Fewer rows than ranks are summed in one shot, whatever is asked for.

    Returns:
        `(out, residual_out)`; the same bits on every rank.

    Raises:
        LamportSizeError: If the workspace is too small, or the tensor has more than a GiB on a GPU. The text gives the
            size that does.
    """
    if is_compiling():
        outputs = torch.ops.lamport_rs.all_reduce_rms_norm(
            input, residual, weight, _table_of(workspace), eps, weight_bias, algorithm
        )
        return _copy_to("out", out, outputs[0]), _copy_to("residual_out", residual_out, outputs[1])
    given, given_residual = out, residual_out
    if out is None:
        out = _empty_like("input", input)
    if residual_out is None:
        residual_out = _empty_like("input", input)
    core = _core_of(workspace)
    _core.all_reduce_rms_norm(core, input, residual, weight, eps, weight_bias, out, residual_out, algorithm)
    if given is not None and not given.is_inference():
        increment_version(given)
    if given_residual is not None and not given_residual.is_inference():
        increment_version(given_residual)
    return out, residual_out


def minimax_allreduce_rms(
    input: torch.Tensor,  # noqa: A002
    norm_weight: torch.Tensor,
    workspace: LamportWorkspace | torch.Tensor,
    rank: int,
    nranks: int,
    eps: float,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normalise rows that are spread over the ranks by the root mean square of the whole row.

    Per row, `out = input / sqrt(sum over ranks and columns of input ** 2 / (nranks * width) + eps) * norm_weight`
    (`MiniMaxText01RMSNormTP` of vLLM). Only one float32 per row travels.

    Args:
        input: This rank's columns of the rows, `[..., width]`, `width` a multiple of 8; rows may lie apart, evenly
            and at multiples of 16 bytes.
        norm_weight: This rank's columns of the weight, `[width]`, dtype of `input` or float32.
        workspace: The group's workspace, or its table; `comm_size` at least
            `compute_comm_size_for_minimax(rows, nranks, fused_qk=False)`.
        rank: This rank; checked against the workspace.
        nranks: Ranks in the group; checked against the workspace.
        eps: Added to the mean of squares.
        out: Where the rows go: shape and dtype of `input`, contiguous. None to allocate it.

    Returns:
        `out`.
    """
    if is_compiling():
        table = _table_of(workspace)
        output: torch.Tensor = torch.ops.lamport_rs.minimax_allreduce_rms(input, norm_weight, table, rank, nranks, eps)
        return _copy_to("out", out, output)
    given = out
    if out is None:
        out = _empty_like("input", input, memory_format=torch.contiguous_format)
    _core.minimax_rms(_core_of(workspace), rank, nranks, input, norm_weight, eps, out)
    if given is not None and not given.is_inference():
        increment_version(given)
    return out


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
    *,
    q_out: torch.Tensor | None = None,
    k_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do `minimax_allreduce_rms` for Q and K at once, out of a packed qkv.

    Argument for argument like vLLM's operator of this name.

    Args:
        qkv: Rows of `[q | k | ...]`, `[..., at least q_size + kv_size]`; rows may lie apart, evenly and at multiples
            of 16 bytes.
        norm_weight_q: This rank's columns of Q's weight, `[q_size]`, dtype of `qkv` or float32.
        norm_weight_k: This rank's columns of K's weight, `[kv_size]`, likewise.
        workspace: The group's workspace, or its table; `comm_size` at least
            `compute_comm_size_for_minimax(rows, nranks)`.
        q_size: This rank's columns of Q, a multiple of 8.
        kv_size: This rank's columns of K, a multiple of 8.
        rank: This rank; checked against the workspace.
        nranks: Ranks in the group; checked against the workspace.
        eps: Added to the mean of squares.
        q_out: Where Q goes: `[..., q_size]`, dtype of `qkv`, contiguous. None to allocate it.
        k_out: Where K goes: `[..., kv_size]`, likewise.

    Returns:
        `(q_out, k_out)`.
    """
    if is_compiling():
        outputs = torch.ops.lamport_rs.minimax_allreduce_rms_qk(
            qkv, norm_weight_q, norm_weight_k, _table_of(workspace), q_size, kv_size, rank, nranks, eps
        )
        return _copy_to("q_out", q_out, outputs[0]), _copy_to("k_out", k_out, outputs[1])
    _check_tensor("qkv", qkv)
    given_q, given_k = q_out, k_out
    try:
        # Sizes that qkv does not hold are refused below; they must not be allocated before.
        columns = qkv.shape[-1] if qkv.dim() > 0 else 0
        if q_out is None:
            q_out = qkv.new_empty((*qkv.shape[:-1], min(max(q_size, 0), columns)))
        if k_out is None:
            k_out = qkv.new_empty((*qkv.shape[:-1], min(max(kv_size, 0), columns)))
    except (TypeError, RuntimeError) as error:
        _check_size("q_size", q_size)
        _check_size("kv_size", kv_size)
        _refuse_layout("qkv", qkv, error)
        raise
    core = _core_of(workspace)
    _core.minimax_rms_qk(core, rank, nranks, qkv, q_size, kv_size, norm_weight_q, norm_weight_k, eps, q_out, k_out)
    if given_q is not None and not given_q.is_inference():
        increment_version(given_q)
    if given_k is not None and not given_k.is_inference():
        increment_version(given_k)
    return q_out, k_out


# No more calls than needed in what follows, nor above: it is part of every eager operation's latency. What autograd has
# saved for a backward pass may be an output that is passed in, so torch has to hear that it was written. Tensors of
# inference mode cannot be saved, and to ask is half as dear.


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise LamportError(f"{name} must be a torch.Tensor, not {type(value).__name__}")


def _empty_like(name: str, value: torch.Tensor, **options: Any) -> torch.Tensor:
    _check_tensor(name, value)
    try:
        return torch.empty_like(value, **options)
    except RuntimeError as error:
        _refuse_layout(name, value, error)
        raise


def _check_size(name: str, size: object) -> None:
    if not isinstance(size, SupportsIndex):
        raise TypeError(f"argument '{name}': must be an integer, not {type(size).__name__}")


def _refuse_layout(name: str, value: torch.Tensor, error: Exception) -> None:
    """Raise what the operation would, had torch been able to allocate an output like `value`."""
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise LamportError(f"{name} is {layout}, but must be a dense tensor") from error


def _core_of(workspace: LamportWorkspace | torch.Tensor) -> _core.Workspace | torch.Tensor:
    if type(workspace) is LamportWorkspace and workspace._core is not None:
        return workspace._core
    return workspace._usable_core() if isinstance(workspace, LamportWorkspace) else workspace


def _table_of(workspace: LamportWorkspace | torch.Tensor) -> torch.Tensor:
    return workspace.workspace if isinstance(workspace, LamportWorkspace) else workspace


def _copy_to(name: str, destination: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """Return `result`, in `destination` if there is one: with the eager operation's checks, which `copy_` lacks."""
    if destination is None:
        return result
    _check_tensor(name, destination)
    if destination.device != result.device:
        raise LamportError(f"{name} is on {destination.device}, but the workspace is on {result.device}")
    if destination.dtype != result.dtype:
        raise LamportError(f"{name} is {destination.dtype}, but must be {result.dtype}")
    if destination.shape != result.shape:
        raise LamportError(f"{name} has shape {list(destination.shape)}, but must have {list(result.shape)}")
    if not destination.is_contiguous():
        raise LamportError(f"{name} is not contiguous; pass {name}.contiguous()")
    return destination.copy_(result)
