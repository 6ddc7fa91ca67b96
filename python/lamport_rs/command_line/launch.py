"""Ranks as processes of this machine, with a torch process group."""

from __future__ import annotations

import atexit
import ctypes
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import resource_tracker
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

from lamport_rs import LamportError
from lamport_rs.backends import Backend, resolve_backend
from lamport_rs.command_line.exit_status import BROKEN_PIPE, TERMINATED

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""The ranks' environment, unless it says otherwise: NVLink multicast can put a shared host's GPUs out of service."""
TIMEOUT = timedelta(seconds=300)
_KILLED_SECONDS = 5.0
"""Most seconds until a killed rank is gone; one that the driver holds stays."""
_PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl.h`."""


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

    The default process group is NCCL's with one GPU per rank (`backend="cuda"`), or gloo's (`backend="host"`).

    The ranks do not outlive this process, however it ends. They hear nothing of an interrupt (Ctrl-C): it ends them
    from here, and SIGTERM does as well, by `SystemExit`.

    Raises:
        LamportError: If a rank failed, with its traceback, or if they have not finished within `time_limit` seconds.
        BrokenPipeError: If a rank wrote to a pipe that nobody reads any more.
    """
    for variable, value in NO_MULTICAST.items():
        os.environ.setdefault(variable, value)
    # It would say that it ends the ranks that a failed one leaves.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, _exit_on_termination():
        store = os.path.join(folder, "store")
        with interrupts_blocked():
            ranks = spawn(_run_rank, (job, world_size, backend, store, arguments), nprocs=world_size, join=False)
        assert ranks is not None
        deadline = time.monotonic() + (time_limit or math.inf)
        try:
            # A join returns when any rank has ended.
            while not ranks.join(None if time_limit is None else max(0.0, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    raise LamportError(f"the {world_size} ranks did not finish within {time_limit:g} s, and were ended")
        except ProcessException as error:
            # The failure of another may be seen first.
            if any(process.exitcode == BROKEN_PIPE for process in ranks.processes):
                raise BrokenPipeError from error
            raise LamportError(str(error).strip()) from error
        finally:
            # A rank that waits for its GPU heeds no gentler signal.
            for process in ranks.processes:
                if process.is_alive():
                    process.kill()
                process.join(_KILLED_SECONDS)


@contextmanager
def ended_without_reader() -> Iterator[None]:
    """A block in which a rank writes: if nobody reads, its process ends at once.

    Were it to clean up first, its peers would fail too, and might end before it does.
    """
    try:
        yield
    except BrokenPipeError:
        # Nor is the output flushed again, which would fail again, with a traceback.
        os._exit(BROKEN_PIPE)


def end_with_parent() -> None:
    """Have the kernel end this process of `multiprocessing` when the one that started it ends, in whatever way."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # It ended before.


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT: here it comes later, in processes that are started meanwhile never."""
    # It is started with the first process, and then unblocks signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_rank(
    rank: int, job: Callable[..., None], world_size: int, backend: str, store: str, arguments: tuple[Any, ...]
) -> None:
    end_with_parent()
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
    # Ranks leave without destroying the group, and without the interpreter's end, which would destroy it. gloo may hold
    # the last reference to a tensor then: with some versions of torch the process waits for its own lock, or aborts.
    try:
        with ended_without_reader():
            job(rank, world_size, device, *arguments)
            sys.stdout.flush()
            sys.stderr.flush()
    except BaseException:
        # `spawn` writes the traceback down first.
        atexit.register(os._exit, 1)
        raise
    os._exit(0)


@contextmanager
def _exit_on_termination() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit`, so that what was measured can be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def exit_now(_number: int, _frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, exit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
