"""Ranks as processes of this machine, with a torch process group."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from lamport_rs import LamportError
from lamport_rs.backends import Backend, resolve_backend

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""The ranks' environment, unless it says otherwise: NVLink multicast can put a shared host's GPUs out of service."""
TIMEOUT = timedelta(seconds=300)


def choose_backend(backend: Backend) -> tuple[str, int]:
    """Return the backend's name, and how many GPUs there are; `"auto"` takes the GPUs if there are several."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if backend == "auto":
        backend = "cuda" if gpus >= 2 else "host"
    name, _ = resolve_backend(backend, None if backend == "cuda" else "cpu")
    return name, gpus


def launch(
    job: Callable[..., None], world_size: int, backend: str, *arguments: Any, time_limit: float | None = None
) -> None:
    """Run `job(rank, world_size, device, *arguments)` in `world_size` processes, and wait for all of them.

    The default process group is NCCL's with one GPU per rank (`backend="cuda"`), or gloo's (`backend="host"`). Ranks
    that have not finished within `time_limit` seconds are ended, and that is a `LamportError`.
    """
    for variable, value in NO_MULTICAST.items():
        os.environ.setdefault(variable, value)
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        ranks = spawn(_run_rank, (job, world_size, backend, store, arguments), nprocs=world_size, join=False)
        assert ranks is not None
        deadline = time.monotonic() + (time_limit or math.inf)
        try:
            # A join returns when any rank has ended.
            while not ranks.join(None if time_limit is None else max(0.0, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    raise LamportError(f"the {world_size} ranks did not finish within {time_limit:g} s, and were ended")
        finally:
            # A rank that waits for its GPU heeds no gentler signal.
            for process in ranks.processes:
                if process.is_alive():
                    process.kill()


def _run_rank(
    rank: int, job: Callable[..., None], world_size: int, backend: str, store: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "cuda" else torch.device("cpu")
    if backend == "cuda":
        torch.cuda.set_device(device)
    # gloo looks the host's name up to find an interface, which fails on machines whose name does not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "nccl" if backend == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    try:
        job(rank, world_size, device, *arguments)
    finally:
        dist.destroy_process_group()
