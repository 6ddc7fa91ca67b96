"""Which memory a workspace lives in."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from lamport_rs import _core
from lamport_rs._core import LamportError

Backend: TypeAlias = Literal["auto", "host", "cuda"]
"""`"host"`: shared memory of one host, for CPU tensors; `"cuda"`: device memory; `"auto"`: what fits the device."""


def resolve_backend(backend: Backend, device: torch.device | str | int | None) -> tuple[str, torch.device]:
    """Return the backend's name and the device, or raise `LamportError` saying what would do.

    Without a device, `"auto"` takes the current CUDA device if there is one, else the CPU.
    """
    # An array, say, compares with a text element by element.
    if not isinstance(backend, str) or backend not in ("auto", "host", "cuda"):
        raise LamportError(f'backend is {backend!r}, but must be "auto", "host" or "cuda"')
    resolved = resolve_device(backend, device)
    name = {"auto": {"cpu": "host", "cuda": "cuda"}.get(resolved.type, "none")}.get(backend, backend)
    if (name, resolved.type) not in (("host", "cpu"), ("cuda", "cuda")):
        raise LamportError(f'backend={backend!r} cannot serve device {resolved}; pass a "cpu" or "cuda" device')
    if name == "cuda" and (obstacle := _core.cuda_obstacle()) is not None:
        raise LamportError(f'{obstacle}; pass device="cpu" (or backend="host") to work over shared memory')
    return name, resolved


def resolve_device(backend: Backend, device: torch.device | str | int | None) -> torch.device:
    """Return the device, with its index if it is a CUDA device; raise `LamportError` if torch has no such device."""
    try:
        if device is None:
            wants_cuda = backend == "cuda" or (backend == "auto" and torch.cuda.is_available())
            return torch.device("cuda", torch.cuda.current_device()) if wants_cuda else torch.device("cpu")
        resolved = torch.device(device)
        if resolved.type == "cuda" and resolved.index is None:
            return torch.device("cuda", torch.cuda.current_device())
    except Exception as error:  # torch raises what it likes where there is no such device.
        raise LamportError(f"backend={backend!r} cannot serve device={device!r}: {error}") from error
    return resolved


def backend_status() -> dict[str, str]:
    """Return, for each backend, whether it can be used here, in words."""
    obstacle = _core.cuda_obstacle()
    cuda = f"available: {torch.cuda.device_count()} devices" if obstacle is None else f"not available: {obstacle}"
    return {"host": "available: shared memory, for CPU tensors", "cuda": cuda}
