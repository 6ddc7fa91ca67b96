"""What is measured: operations, each at several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lamport_rs.command_line.bench.arguments import FINALISATIONS, format_bytes
from lamport_rs.command_line.bench.decoder import LLAMA_3_8B, SMALL

SIZES = (512, 8 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 8 << 20)
HIDDEN = 4096
MOE_HIDDEN = (4096, 7168)
"""Of models with experts, such as Qwen3-235B and DeepSeek-V3."""
EXPERTS_PER_TOKEN = 8
Q_SIZE, KV_SIZE = 6144, 1024
_SPREAD: dict[str, int | str] = {
    "minimax_allreduce_rms": Q_SIZE,
    "minimax_allreduce_rms_qk": f"{Q_SIZE}+{KV_SIZE}",
}
"""Operations on rows whose columns the ranks share, and how many; of all others each rank has whole rows."""
_TOKENS = (1, 8, 32, 128)
_TOKENS_OF_SPREAD_ROWS = (*_TOKENS, 512, 2048)
_LAYERS = {"cuda": 32, "host": 4}


@dataclass(frozen=True)
class Case:
    """One operation at one size; `bytes` or `tokens` and `hidden` say which."""

    op: str
    dtype: torch.dtype
    bytes: int | None = None
    tokens: int | None = None
    hidden: int | str | None = None
    layers: int | None = None
    """Of the model, where the operation is a step of it."""

    def __str__(self) -> str:
        return f"{self.op} of {dtype_name(self.dtype)}, {self.size_and_width}"

    @property
    def size(self) -> str:
        """The size as people write it."""
        return format_bytes(self.bytes) if self.bytes is not None else str(self.tokens)

    @property
    def size_and_width(self) -> str:
        """Likewise, of rows their width too."""
        return self.size if self.hidden is None else f"{self.size} x {self.hidden}"

    def keys(self) -> dict[str, Any]:
        """Return what a record's row says about the case."""
        return {
            "op": self.op,
            "dtype": dtype_name(self.dtype),
            "bytes": self.bytes,
            "tokens": self.tokens,
            "hidden": self.hidden,
            "layers": self.layers,
        }


def cases_of(
    op: str,
    backend: str,
    sizes: Sequence[int] = SIZES,
    tokens: Sequence[int] | None = None,
    layers: int | None = None,
) -> list[Case]:
    """Return the cases of one of `COLLECTIVES` or `STEPS`; without `tokens` and `layers`, those that suit it."""
    if op == "all_reduce":
        dtypes = (torch.bfloat16,) if backend == "cuda" else (torch.float32, torch.bfloat16)
        return [all_reduce_case(size, dtype) for dtype in dtypes for size in sizes]
    if op == "decode_step":
        return [decode_case(count, backend, layers or _LAYERS[backend]) for count in tokens or _TOKENS]
    if op in FINALISATIONS:
        return [finalise_case(op, count, hidden) for hidden in MOE_HIDDEN for count in tokens or _TOKENS]
    suitable = _TOKENS_OF_SPREAD_ROWS if op in _SPREAD else _TOKENS
    return [rows_case(op, count) for count in tokens or suitable]


def all_reduce_case(size: int, dtype: torch.dtype) -> Case:
    """Return the sum of `size` bytes."""
    return Case("all_reduce", dtype, bytes=size)


def rows_case(op: str, tokens: int) -> Case:
    """Return an operation on rows: of 4096 columns, or of those of MiniMax that the ranks share."""
    return Case(op, torch.bfloat16, tokens=tokens, hidden=_SPREAD.get(op, HIDDEN))


def finalise_case(op: str, tokens: int, hidden: int) -> Case:
    """Return one of `FINALISATIONS`, of eight experts' rows for each token."""
    return Case(op, torch.bfloat16, tokens=tokens, hidden=hidden)


def decode_case(tokens: int, backend: str, layers: int) -> Case:
    """Return the step of a batch of `tokens`: Llama-3-8B's dimensions on GPUs, small ones on the host."""
    if backend == "cuda":
        return Case("decode_step", torch.bfloat16, tokens=tokens, hidden=LLAMA_3_8B.hidden, layers=layers)
    return Case("decode_step", torch.float32, tokens=tokens, hidden=SMALL.hidden, layers=layers)


def largest_message(cases: Sequence[Case]) -> int:
    """Return the most bytes of the vectors that are summed in one of `cases`; 0 if there are none."""
    return max((message_bytes(case) or 0 for case in cases), default=0)


def message_bytes(case: Case) -> int | None:
    """Return the bytes of the vectors that are summed; None where something smaller is."""
    if case.op not in _SPREAD and case.tokens is not None and isinstance(case.hidden, int):
        return case.tokens * case.hidden * case.dtype.itemsize
    return case.bytes


def dtype_name(dtype: torch.dtype) -> str:
    """Return `"bfloat16"` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
