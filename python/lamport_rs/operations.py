"""The collectives.

Each is a collective call: all ranks of the workspace's group make it, with tensors of the same shapes and dtypes, in
the same order. Sums are taken in float32 and in rank order, so all ranks get the same bits, on every run. A
contribution of -0.0 counts as +0.0.

All raise `LamportError` for operands they cannot take, having changed nothing, and `LamportTimeoutError`, naming the
missing ranks, when peers do not come; after that the workspace can no longer be used. Neither can it after a host
operation was interrupted by an exception of a signal's handler, such as `KeyboardInterrupt`, while it waited for peers.

Tensors are on the workspace's device, aligned to 16 bytes (as torch allocates them), float32, float16 or bfloat16. An
output may be the very tensor it is computed from. None of the operations has a gradient.

On a GPU the operations run in the order of torch's current stream and overlap the start of what comes before them: the
MiniMax norms' weights are read early, so they must not be written by the kernel just before the operation. A CUDA graph
that captured an operation needs the workspace for as long as it is replayed, and its replays are ordered by the stream
they are launched on, not by the library.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch.compiler import is_compiling

from lamport_rs import _core
from lamport_rs._core import LamportError, LamportSizeError
from lamport_rs.workspace import LamportWorkspace

Algorithm: TypeAlias = Literal["auto", "one_shot", "two_shot"]
"""How a tensor is reduced.

`"one_shot"`: every rank pushes all of its tensor to every peer, and each sums for itself. One way over the link.
`"two_shot"`: every rank sums one shard and pushes the sums to every peer. Two ways, but each byte travels twice and not
once per peer. `"auto"`: the faster one by measurement, or else the one that the workspace has room for. All give the
same bits. On the host `all_reduce_rms_norm` is one-shot only.
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
        LamportSizeError: If the workspace is too small, and there is no fallback. The text gives the size that does.
    """
    if fallback is None and is_compiling():
        total: torch.Tensor = torch.ops.lamport_rs.all_reduce(input, _table_of(workspace), algorithm)
        return total if out is None else out.copy_(total)
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
        LamportSizeError: If the workspace is too small. The text gives the size that does.
    """
    if is_compiling():
        outputs = torch.ops.lamport_rs.all_reduce_rms_norm(
            input, residual, weight, _table_of(workspace), eps, weight_bias, algorithm
        )
        return _copy_all((out, residual_out), outputs)
    if out is None:
        out = _empty_like("input", input)
    if residual_out is None:
        residual_out = _empty_like("input", input)
    core = _core_of(workspace)
    _core.all_reduce_rms_norm(core, input, residual, weight, eps, weight_bias, out, residual_out, algorithm)
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
        return output if out is None else out.copy_(output)
    if out is None:
        out = _empty_like("input", input, memory_format=torch.contiguous_format)
    _core.minimax_rms(_core_of(workspace), rank, nranks, input, norm_weight, eps, out)
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
        return _copy_all((q_out, k_out), outputs)
    _check_tensor("qkv", qkv)
    # Sizes that qkv does not hold are refused below; they must not be allocated before.
    columns = qkv.shape[-1] if qkv.dim() > 0 else 0
    if q_out is None:
        q_out = qkv.new_empty((*qkv.shape[:-1], min(max(q_size, 0), columns)))
    if k_out is None:
        k_out = qkv.new_empty((*qkv.shape[:-1], min(max(kv_size, 0), columns)))
    core = _core_of(workspace)
    _core.minimax_rms_qk(core, rank, nranks, qkv, q_size, kv_size, norm_weight_q, norm_weight_k, eps, q_out, k_out)
    return q_out, k_out


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise LamportError(f"{name} must be a torch.Tensor, not {type(value).__name__}")


def _empty_like(name: str, value: torch.Tensor, **options: Any) -> torch.Tensor:
    _check_tensor(name, value)
    return torch.empty_like(value, **options)


def _core_of(workspace: LamportWorkspace | torch.Tensor) -> _core.Workspace | torch.Tensor:
    # No more calls than needed: this is part of every eager operation's latency.
    if type(workspace) is LamportWorkspace and workspace._core is not None:
        return workspace._core
    return workspace._usable_core() if isinstance(workspace, LamportWorkspace) else workspace


def _table_of(workspace: LamportWorkspace | torch.Tensor) -> torch.Tensor:
    return workspace.workspace if isinstance(workspace, LamportWorkspace) else workspace


def _copy_all(
    destinations: tuple[torch.Tensor | None, torch.Tensor | None], outputs: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = destinations
    return (
        outputs[0] if first is None else first.copy_(outputs[0]),
        outputs[1] if second is None else second.copy_(outputs[1]),
    )
