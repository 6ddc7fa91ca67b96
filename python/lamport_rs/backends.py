"""Which memory a workspace lives in."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from lamport_rs import _core
from lamport_rs._core import LamportError
from lamport_rs.exchange import AllGather

Backend: TypeAlias = Literal["auto", "host", "cuda"]
"""`"host"`: shared memory of one host, for CPU tensors; `"cuda"`: device memory; `"auto"`: what fits the device."""


def resolve_backend(backend: Backend, device: torch.device | str | int | None) -> tuple[str, torch.device]:
    """Return the backend's name and the device, or raise `LamportError` saying what would do.

    Without a device, `"auto"` takes the current CUDA device if there is one, else the CPU.
    """
    if backend not in ("auto", "host", "cuda"):
        raise LamportError(f'backend is {backend!r}, but must be "auto", "host" or "cuda"')
    try:
        resolved = _resolve_device(backend, device)
    except (RuntimeError, AssertionError, TypeError) as error:  # what torch raises where there is no such device
        raise LamportError(f"backend={backend!r} cannot serve device={device!r}: {error}") from error
    name = {"auto": {"cpu": "host", "cuda": "cuda"}.get(resolved.type, "none")}.get(backend, backend)
    if (name, resolved.type) not in (("host", "cpu"), ("cuda", "cuda")):
        raise LamportError(f'backend={backend!r} cannot serve device {resolved}; pass a "cpu" or "cuda" device')
    if name == "cuda" and (obstacle := _core.cuda_obstacle()) is not None:
        raise LamportError(f'{obstacle}; pass device="cpu" (or backend="host") to work over shared memory')
    return name, resolved


def agree_on_backend(
    rank: int,
    world_size: int,
    size: int,
    backend: Backend,
    device: torch.device | str | int | None,
    all_gather: AllGather,
) -> tuple[str, torch.device]:
    """Do `resolve_backend` as part of a collective call: what it raises reaches all ranks, which would wait else.

    Likewise for `rank`, `world_size` and `size` (bytes) that are no 64-bit integers.
    """
    try:
        for name, value in (("rank", rank), ("world_size", world_size), ("the size in bytes", size)):
            _check_integer(name, value)
        return resolve_backend(backend, device)
    except LamportError as error:
        known_rank, known_size = (value if _is_integer(value) else -1 for value in (rank, world_size))
        _core.refuse(known_rank, known_size, str(error), all_gather)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _check_integer(name: str, value: object) -> None:
    if not _is_integer(value):
        raise LamportError(f"{name} is {value!r}, but must be an integer of at most 64 bits")


def backend_status() -> dict[str, str]:
    """Return, for each backend, whether it can be used here, in words."""
    obstacle = _core.cuda_obstacle()
    cuda = f"available: {torch.cuda.device_count()} devices" if obstacle is None else f"not available: {obstacle}"
    return {"host": "available: shared memory, for CPU tensors", "cuda": cuda}


def _resolve_device(backend: Backend, device: torch.device | str | int | None) -> torch.device:
    if device is None:
        wants_cuda = backend == "cuda" or (backend == "auto" and torch.cuda.is_available())
        return torch.device("cuda", torch.cuda.current_device()) if wants_cuda else torch.device("cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved
