"""What is measured: operations, each at several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lamport_rs.command_line.bench.arguments import format_bytes

SIZES = (512, 8 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 8 << 20)
HIDDEN = 4096
Q_SIZE, KV_SIZE = 6144, 1024
_TOKENS = {
    "all_reduce_rms_norm": (1, 8, 32, 128),
    "minimax_allreduce_rms_qk": (1, 8, 32, 128, 512, 2048),
}


@dataclass(frozen=True)
class Case:
    """One operation at one size; `bytes` or `tokens` and `hidden` say which."""

    op: str
    dtype: torch.dtype
    bytes: int | None = None
    tokens: int | None = None
    hidden: int | str | None = None

    def __str__(self) -> str:
        return f"{self.op} of {dtype_name(self.dtype)}, {self.size}{'' if self.tokens is None else ' tokens'}"

    @property
    def size(self) -> str:
        """The size as people write it."""
        return format_bytes(self.bytes) if self.bytes is not None else str(self.tokens)

    def keys(self) -> dict[str, Any]:
        """Return what a record's row says about the case."""
        return {
            "op": self.op,
            "dtype": dtype_name(self.dtype),
            "bytes": self.bytes,
            "tokens": self.tokens,
            "hidden": self.hidden,
        }


def cases_of(op: str, backend: str, sizes: Sequence[int] = SIZES, tokens: Sequence[int] | None = None) -> list[Case]:
    """Return the cases of one of `COLLECTIVES`; without `tokens`, those that suit it."""
    if op == "all_reduce":
        dtypes = (torch.bfloat16,) if backend == "cuda" else (torch.float32, torch.bfloat16)
        return [all_reduce_case(size, dtype) for dtype in dtypes for size in sizes]
    create = {"all_reduce_rms_norm": rms_norm_case, "minimax_allreduce_rms_qk": minimax_case}[op]
    return [create(count) for count in tokens or _TOKENS[op]]


def all_reduce_case(size: int, dtype: torch.dtype) -> Case:
    """Return the sum of `size` bytes."""
    return Case("all_reduce", dtype, bytes=size)


def rms_norm_case(tokens: int) -> Case:
    """Return the sum, the residual and the norm of rows of 4096 elements."""
    return Case("all_reduce_rms_norm", torch.bfloat16, tokens=tokens, hidden=HIDDEN)


def minimax_case(tokens: int) -> Case:
    """Return the norms of Q and K, whose columns the ranks share."""
    return Case("minimax_allreduce_rms_qk", torch.bfloat16, tokens=tokens, hidden=f"{Q_SIZE}+{KV_SIZE}")


def message_bytes(case: Case) -> int | None:
    """Return the bytes of the vectors that are summed; None where something smaller is."""
    if case.op == "all_reduce_rms_norm" and case.tokens is not None and isinstance(case.hidden, int):
        return case.tokens * case.hidden * case.dtype.itemsize
    return case.bytes if case.op == "all_reduce" else None


def dtype_name(dtype: torch.dtype) -> str:
    """Return `"bfloat16"` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
