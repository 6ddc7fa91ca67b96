"""The collectives.

Each is a collective call: all ranks of the workspace's group make it, with tensors of the same shapes and dtypes, in
the same order.

**Operands** are on the workspace's device, float32, float16 or bfloat16, in any layout and of any size. What is not
contiguous, or not aligned to 16 bytes, is copied. An output may be the very tensor it is computed from; its elements
must not share memory. A tensor of which a slot has no room for every rank's message runs as several operations. Where
rows of experts are finalised, they are float16 or bfloat16, and an output may be the residual only. Layer norms are of
float16 and bfloat16 too.

**Results** are the same bits on every rank and on every run: sums are taken in float32 and in rank order. A row's bits
do not depend on how many rows share the call, nor on where it is among them. Every NaN that is computed is the same:
0x7fffffff in float32, 0x7fff in 16 bits. A contribution of -0.0 counts as +0.0, except in a group of one on a GPU,
where a sum is a copy. On the host an operation computes with the default floating-point settings, whatever the calling
thread's are.

**Errors.** A tensor, value or workspace that cannot be taken, or another thread than the workspace's, is a
`LamportError` before anything is sent, and arguments that do not fit the parameters are a `TypeError`. Such a call
counts all the same: if all ranks refuse it, they go on together; if one does and goes on, the ranks have parted. Not
counted are a call that names no workspace, and one that only asks for shapes, on meta tensors or in a fake mode.

Ranks that have parted, or that call different operations, sizes, dtypes, algorithms or scalars, raise
`LamportMismatchError`. Two calls that are alike in all this, and swapped on a rank, look the same. Peers that do not
come are named in `LamportTimeoutError`, and ranks that have ended in `LamportAbortedError`. After one of these, or
after an exception of a signal's handler within a host operation, the workspace cannot be used until `reset`, and on a
GPU results are NaN from that operation on. A plain argument of a wrong type is a `TypeError`, and an integer of more
than 64 bits an `OverflowError`.

**Gradients.** None of the operations has one. Where gradients are enabled and an input requires one, a warning says so,
once per process and operation. An output that is passed in counts as changed in place, and is refused if it requires a
gradient there, unless it is an input.

**Tracers.** Under torch.compile, torch.export, torch.jit.trace and make_fx the functions become the operators
`torch.ops.lamport_rs.*`, which are never left out, reordered, merged or run again. An activation checkpoint within
compiled code saves their results; outside it runs them again in the backward pass. torch.vmap, torch.func.grad and the
like are a `LamportError`.

**Streams.** On a GPU the operations run in the order of torch's current stream and overlap the end of what comes before
them: the MiniMax norms' weights, and the scale that a quantiser is given, are read early, so that the kernel just
before must not write them. A workspace stays once a CUDA graph has captured its operations, until
`release_memory(captured=True)`; replays are ordered by the stream they are launched on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lamport_rs.operations.collective import Algorithm as Algorithm
from lamport_rs.operations.collective import Collective
from lamport_rs.operations.layer_norm import LAYER_NORM, all_reduce_layer_norm, run_all_reduce_layer_norm
from lamport_rs.operations.minimax import (
    MINIMAX,
    MINIMAX_QK,
    minimax_allreduce_rms,
    minimax_allreduce_rms_qk,
    run_minimax_rms,
    run_minimax_rms_qk,
)
from lamport_rs.operations.moe_finalize import (
    FINALIZE,
    FINALIZE_RMS_NORM,
    moe_finalize_all_reduce,
    moe_finalize_all_reduce_rms_norm,
    run_moe_finalize,
    run_moe_finalize_rms_norm,
)
from lamport_rs.operations.quant_formats import QuantFormat as QuantFormat
from lamport_rs.operations.rms_norm import RMS_NORM, all_reduce_rms_norm, run_all_reduce_rms_norm
from lamport_rs.operations.rms_norm_quant import (
    RMS_NORM_QUANT,
    all_reduce_rms_norm_quant,
    run_all_reduce_rms_norm_quant,
)
from lamport_rs.operations.sum_quant import SUM_QUANT, all_reduce_quant, run_all_reduce_quant
from lamport_rs.operations.sums import SUM, all_reduce, run_all_reduce

COLLECTIVES: tuple[tuple[Collective, Callable[..., Any]], ...] = (
    (SUM, run_all_reduce),
    (RMS_NORM, run_all_reduce_rms_norm),
    (RMS_NORM_QUANT, run_all_reduce_rms_norm_quant),
    (LAYER_NORM, run_all_reduce_layer_norm),
    (SUM_QUANT, run_all_reduce_quant),
    (MINIMAX, run_minimax_rms),
    (MINIMAX_QK, run_minimax_rms_qk),
    (FINALIZE, run_moe_finalize),
    (FINALIZE_RMS_NORM, run_moe_finalize_rms_norm),
)
"""What becomes operators, and how each runs without a tracer."""

__all__: list[str] = [
    "all_reduce",
    "all_reduce_layer_norm",
    "all_reduce_quant",
    "all_reduce_rms_norm",
    "all_reduce_rms_norm_quant",
    "minimax_allreduce_rms",
    "minimax_allreduce_rms_qk",
    "moe_finalize_all_reduce",
    "moe_finalize_all_reduce_rms_norm",
]
