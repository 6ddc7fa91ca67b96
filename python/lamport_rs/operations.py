"""The collectives.

Each is a collective call: all ranks of the workspace's group make it, with tensors of the same shapes and dtypes, in
the same order.

**Operands** are on the workspace's device, float32, float16 or bfloat16, in any layout and of any size. What is not
contiguous, or not aligned to 16 bytes, is copied. An output may be the very tensor it is computed from; its elements
must not share memory. A tensor of which a slot has no room for every rank's message runs as several operations.

**Results** are the same bits on every rank and on every run: sums are taken in float32 and in rank order. A row's bits
do not depend on how many rows share the call, nor on where it is among them. A contribution of -0.0 counts as +0.0,
except in a group of one on a GPU, where a sum is a copy. On the host an operation computes with the default
floating-point settings, whatever the calling thread's are.

**Errors.** A tensor, value or workspace that cannot be taken, or another thread than the workspace's, is a
`LamportError` before anything is sent. Such a call counts all the same: if all ranks refuse it, they go on together; if
one does and goes on, the ranks have parted. Not counted are a call that names no workspace, one whose arguments do not
fit the parameters, and one that torch refuses in a fake mode: after these a caller must not go on.

Ranks that have parted, or that call different operations, sizes, dtypes, algorithms or scalars, raise
`LamportMismatchError`. Peers that do not come are named in `LamportTimeoutError`, and ranks that have ended in
`LamportAbortedError`. After one of these, or after an exception of a signal's handler within a host operation, the
workspace cannot be used until `reset`, and on a GPU results are NaN from that operation on. A plain argument of a wrong
type is a `TypeError`, and an integer of more than 64 bits an `OverflowError`.

**Gradients.** None of the operations has one. Where gradients are enabled and an input requires one, a warning says so,
once per process and operation. An output that is passed in counts as changed in place.

**Tracers.** Under torch.compile, torch.export, torch.jit.trace and make_fx the functions become the operators
`torch.ops.lamport_rs.*`, which are never left out, reordered, merged or run again. An activation checkpoint within
compiled code saves their results; outside it runs them again in the backward pass. torch.vmap, torch.func.grad and the
like are a `LamportError`.

**Streams.** On a GPU the operations run in the order of torch's current stream and overlap the end of what comes before
them: the MiniMax norms' weights are read early, so the kernel just before must not write them. A CUDA graph keeps the
workspace whose operations it has captured; its replays are ordered by the stream they are launched on.
"""

from __future__ import annotations

import torch

from lamport_rs._core import LamportError
from lamport_rs.eager import (
    Algorithm,
    check_tensor,
    run_all_reduce,
    run_all_reduce_rms_norm,
    run_minimax_rms,
    run_minimax_rms_qk,
)
from lamport_rs.tracing import must_dispatch
from lamport_rs.workspace import LamportWorkspace


def all_reduce(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    workspace: LamportWorkspace | torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    algorithm: Algorithm = "auto",
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
    if must_dispatch(input):
        return copy_to("out", out, torch.ops.lamport_rs.all_reduce(input, table_of(workspace), algorithm))
    return run_all_reduce(input, workspace, algorithm, out)


def all_reduce_rms_norm(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
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
        input: This rank's tensor, `[..., hidden]`, `hidden` a multiple of 8: float32, float16 or bfloat16.
        residual: `[..., hidden]`, dtype of `input`, the same on every rank. None to add nothing.
        weight: `[hidden]`, dtype of `input` or float32, the same on every rank.
        workspace: The group's workspace, or its table.
        eps: Added to the mean of squares.
        weight_bias: Added to each weight: 1.0 for models that keep weights as their distance from 1 (Gemma).
        out: Where the normalised rows go, like `input`; may be `input`. None to allocate it.
        residual_out: Where the sum goes, like `input`; may be `residual`, or `input`. None to allocate it.
        algorithm: As for `all_reduce`. With `"two_shot"` each rank sums whole rows, every `world_size`-th; for GPUs
            only. Fewer rows than ranks are summed in one shot, whatever is asked for.

    Returns:
        `(out, residual_out)`; the same bits on every rank.

    Raises:
        LamportSizeError: On a GPU, if a slot has no room for one row of every rank. The text gives the size that does.
        LamportError: As for `all_reduce`, its subclasses among them.
    """
    if must_dispatch(input):
        check_apart("out", out, "residual_out", residual_out)
        outputs = torch.ops.lamport_rs.all_reduce_rms_norm(
            input, residual, weight, table_of(workspace), eps, weight_bias, algorithm
        )
        return copy_to("out", out, outputs[0]), copy_to("residual_out", residual_out, outputs[1])
    return run_all_reduce_rms_norm(input, residual, weight, workspace, eps, weight_bias, algorithm, out, residual_out)


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
    if must_dispatch(input):
        table = table_of(workspace)
        output: torch.Tensor = torch.ops.lamport_rs.minimax_allreduce_rms(input, norm_weight, table, rank, nranks, eps)
        return copy_to("out", out, output)
    return run_minimax_rms(input, norm_weight, workspace, rank, nranks, eps, out)


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
    if must_dispatch(qkv):
        check_apart("q_out", q_out, "k_out", k_out)
        outputs = torch.ops.lamport_rs.minimax_allreduce_rms_qk(
            qkv, norm_weight_q, norm_weight_k, table_of(workspace), q_size, kv_size, rank, nranks, eps
        )
        return copy_to("q_out", q_out, outputs[0]), copy_to("k_out", k_out, outputs[1])
    return run_minimax_rms_qk(
        qkv, norm_weight_q, norm_weight_k, workspace, q_size, kv_size, rank, nranks, eps, q_out, k_out
    )


def table_of(workspace: LamportWorkspace | torch.Tensor) -> torch.Tensor:
    """Return the table that an operator knows the workspace by."""
    return workspace.workspace if isinstance(workspace, LamportWorkspace) else workspace


def check_apart(name: str, out: torch.Tensor | None, other_name: str, other: torch.Tensor | None) -> None:
    """Raise LamportError if two outputs are one tensor."""
    if out is not None and out is other:
        raise LamportError(f"{name} overlaps {other_name}; they must be separate tensors")


def copy_to(name: str, destination: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """Return `result`, in `destination` if there is one: with the eager operation's checks, which `copy_` lacks."""
    if destination is None:
        return result
    check_tensor(name, destination)
    if destination.device != result.device:
        raise LamportError(f"{name} is on {destination.device}, but the workspace is on {result.device}")
    if destination.dtype != result.dtype:
        raise LamportError(f"{name} is {destination.dtype}, but must be {result.dtype}")
    if destination.shape != result.shape:
        raise LamportError(f"{name} has shape {list(destination.shape)}, but must have {list(result.shape)}")
    if not destination.is_contiguous() and 0 in destination.stride():
        raise LamportError(f"{name} has elements that share memory, but each must have its own")
    return destination.copy_(result)
