"""The implementations, in the order of the tables' columns."""

from __future__ import annotations

from lamport_rs.command_line.bench.implementations.base import Call, Implementation, Outputs
from lamport_rs.command_line.bench.implementations.by_torch import (
    EagerGloo,
    EagerNccl,
    Gloo,
    Nccl,
    SymmMemOneShot,
    SymmMemTwoShot,
)
from lamport_rs.command_line.bench.implementations.flashinfer import FlashInferMnnvl, FlashInferTrtllm
from lamport_rs.command_line.bench.implementations.floor import NoCommunication
from lamport_rs.command_line.bench.implementations.nccl_windows import NcclWindows
from lamport_rs.command_line.bench.implementations.own import (
    Lamport,
    LamportOneShot,
    LamportTwoShot,
    LamportUnfused,
)
from lamport_rs.command_line.bench.implementations.sglang import SglangPull, SglangPush, SglangQkNorm
from lamport_rs.command_line.bench.implementations.vllm import VllmCustom

__all__ = ["IMPLEMENTATIONS", "Call", "Implementation", "Outputs", "implementations_of"]

IMPLEMENTATIONS: tuple[type[Implementation], ...] = (
    Lamport,
    LamportOneShot,
    LamportTwoShot,
    LamportUnfused,
    Nccl,
    NcclWindows,
    Gloo,
    SymmMemOneShot,
    SymmMemTwoShot,
    SglangPush,
    SglangPull,
    SglangQkNorm,
    FlashInferTrtllm,
    FlashInferMnnvl,
    VllmCustom,
    EagerNccl,
    EagerGloo,
    NoCommunication,
)


def implementations_of(operation: str, backend: str) -> list[type[Implementation]]:
    """Return who serves the operation on the backend."""
    return [each for each in IMPLEMENTATIONS if each.serves(operation, backend)]
