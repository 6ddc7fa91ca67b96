"""Ranks as processes of this machine, with a torch process group."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

TIMEOUT = timedelta(seconds=300)


def launch(job: Callable[..., None], world_size: int, backend: str, *arguments: Any) -> None:
    """Run `job(rank, world_size, device, *arguments)` in `world_size` processes, and wait for all of them.

    The default process group is NCCL's with one GPU per rank (`backend="cuda"`), or gloo's (`backend="host"`).
    """
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        spawn(_run_rank, args=(job, world_size, backend, store, arguments), nprocs=world_size)


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
