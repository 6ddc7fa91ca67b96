"""Whether a word travels between two ranks, in both directions, and how fast.

Each pair has two processes of its own: whatever goes wrong in them, or never ends, is that pair's alone. They need no
process group, and so no NCCL.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import torch

import lamport_rs
from lamport_rs.command_line.doctor.report import Pair, Transfer, held_processes
from lamport_rs.command_line.launch import NO_MULTICAST, end_with_parent, interrupts_blocked

Told: TypeAlias = dict[str, Any]
"""What a rank has told until it ended, or was ended: some of `arrived`, `latency_us`, `bandwidth` and `error`."""
Place: TypeAlias = int | None
"""The GPU of a rank; None for shared memory."""

PAIR_SECONDS = 60.0
"""Most seconds for a pair; a process may need some to import torch and to open its GPU."""
TOTAL_SECONDS = 600.0
"""Most seconds for all pairs. Those whose turn never comes are told."""
_RENDEZVOUS_SECONDS = 30.0
_ARRIVAL_SECONDS = 2.0
_KILLED_SECONDS = 5.0
"""Most seconds until a killed process is gone; one that the driver holds stays."""
_TIMEOUT = 5.0
"""Seconds that an operation waits."""
_WORD = 0x8000_0000
"""What `lamport_fill_neg_zero` writes, and a fresh buffer does not have."""
_SMALL, _LARGE = 16, 4 << 20
"""Bytes of the all-reduces that are timed."""
_SAMPLES = 7


def examine(
    ranks: int, place_of: Callable[[int], Place], pair_seconds: float = PAIR_SECONDS, total: float = TOTAL_SECONDS
) -> Iterator[tuple[Pair, list[Transfer]]]:
    """Yield each pair of `ranks` ranks and its transfers, one after the other; `place_of` says where a rank is."""
    for variable, value in NO_MULTICAST.items():
        os.environ.setdefault(variable, value)
    context = multiprocessing.get_context("forkserver")
    # So that torch is imported once.
    context.set_forkserver_preload(["lamport_rs.torch_operators"])
    deadline = time.monotonic() + total
    for first, second in combinations(range(ranks), 2):
        seconds = min(pair_seconds, deadline - time.monotonic())
        if seconds <= 0:
            reason = f"not tried: the {total:g} s for all pairs were over"
            unknown = [Transfer(a, b, None, reason) for a, b in ((first, second), (second, first))]
            yield Pair((first, second), reason=reason), unknown
            continue
        places = place_of(first), place_of(second)
        yield judge((first, second), run_pair(context, _examine_rank, places, seconds), seconds)


def run_pair(context: Any, job: Callable[..., None], places: tuple[Place, Place], seconds: float) -> tuple[Told, Told]:
    """Run `job(rank, place, peer, report)` in two processes, and return what they have told after at most `seconds`."""
    peers = context.Pipe()
    processes, reports = [], []
    try:
        for rank, place in enumerate(places):
            receiving, sending = context.Pipe(duplex=False)
            reports.append(receiving)
            process = context.Process(target=job, args=(rank, place, peers[rank], sending))
            with interrupts_blocked():
                process.start()
            processes.append(process)
            # Closed here, an end tells the other side that its process has ended.
            sending.close()
            peers[rank].close()
        return _collect(reports, seconds)
    finally:
        for process in processes:
            process.kill()
            process.join(_KILLED_SECONDS)
            if process.is_alive():
                held_processes.append(process)
        for each in (*peers, *reports):
            each.close()


def _collect(reports: list[Connection], seconds: float) -> tuple[Told, Told]:
    told: tuple[Told, Told] = ({}, {})
    by_report = dict(zip(reports, told, strict=True))
    deadline = time.monotonic() + seconds
    while by_report:
        ready = wait(list(by_report), max(0.0, deadline - time.monotonic()))
        if not ready:
            for each in by_report.values():
                each["error"] = f"no answer within {seconds:.0f} s"
            break
        for report in ready:
            assert isinstance(report, Connection)
            try:
                by_report[report].update(report.recv())
            except (EOFError, OSError):
                ended = by_report.pop(report)
                if not ended.pop("done", False):
                    ended.setdefault("error", "its process ended before it was done")
    return told


def judge(ranks: tuple[int, int], told: tuple[Told, Told], seconds: float) -> tuple[Pair, list[Transfer]]:
    """Return what two ranks have told of each other: each knows whether the other's word has arrived."""
    transfers = []
    for target, source in ((1, 0), (0, 1)):
        arrived, error = told[target].get("arrived"), told[target].get("error") or told[source].get("error")
        reason = None
        if arrived is None:
            reason = error or f"no answer within {seconds:.0f} s"
        elif not arrived:
            reason = f"the word did not arrive within {_ARRIVAL_SECONDS:g} s"
        transfers.append(Transfer(ranks[source], ranks[target], arrived is True, reason))
    errors = [f"rank {rank}: {each['error']}" for rank, each in zip(ranks, told, strict=True) if each.get("error")]
    latencies = [each["latency_us"] for each in told if "latency_us" in each]
    bandwidths = [each["gb_per_s"] for each in told if "gb_per_s" in each]
    return (
        Pair(
            ranks,
            round(max(latencies), 3) if len(latencies) == 2 else None,
            round(min(bandwidths), 3) if len(bandwidths) == 2 else None,
            "; ".join(dict.fromkeys(errors)) or None,
        ),
        transfers,
    )


def _examine_rank(rank: int, place: Place, peer: Connection, report: Connection) -> None:
    """Examine the way to the one other rank, and tell step by step."""
    end_with_parent()
    torch.set_num_threads(1)
    try:
        device = torch.device("cpu") if place is None else torch.device("cuda", place)
        if place is not None:
            torch.cuda.set_device(device)
            torch.zeros(1, device=device)  # So that the context is there, and current.

        def all_gather(message: bytes) -> list[bytes]:
            peer.send_bytes(message)
            if not peer.poll(_RENDEZVOUS_SECONDS):
                raise TimeoutError(f"the other rank sent nothing for {_RENDEZVOUS_SECONDS:g} s")
            other = peer.recv_bytes()
            return [message, other] if rank == 0 else [other, message]

        arrived = _send_word(rank, device, all_gather)
        report.send({"arrived": arrived})
        if all_gather(struct.pack("?", arrived)) == [struct.pack("?", True)] * 2:
            report.send(_measure(rank, device, all_gather))
        report.send({"done": True})
    except Exception as error:  # Whatever it is, it is what was found.
        with contextlib.suppress(OSError):  # Nobody listens any more.
            report.send({"error": " ".join(str(error).split()) or type(error).__name__, "done": True})


def _send_word(rank: int, device: torch.device, all_gather: Callable[[bytes], list[bytes]]) -> bool:
    """Store a word in the other rank's memory; return whether the other's has arrived here. Collective."""
    buffer = lamport_rs.IpcBuffer(rank, 2, 4096, all_gather, device=device)
    theirs = buffer.peer_ptrs[1 - rank]
    if device.type == "cuda":
        lamport_rs.lamport_fill_neg_zero(theirs, 16)
    else:
        ctypes.c_uint32.from_address(theirs).value = _WORD
    all_gather(b"stored")
    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while not (arrived := _read_word(buffer.local_ptr, device) == _WORD) and time.monotonic() < deadline:
        time.sleep(0.01)
    # Neither gives its memory up while the other may still store.
    all_gather(b"read")
    buffer.cleanup()
    return arrived


def _read_word(address: int, device: torch.device) -> int:
    word = ctypes.c_uint32(0)
    if device.type != "cuda":
        return ctypes.c_uint32.from_address(address).value
    # torch makes no tensor of an address.
    status = ctypes.CDLL("libcuda.so.1").cuMemcpyDtoH_v2(
        ctypes.byref(word), ctypes.c_uint64(address), ctypes.c_size_t(4)
    )
    if status != 0:
        raise RuntimeError(f"cuMemcpyDtoH failed with status {status}")
    return word.value


def _measure(rank: int, device: torch.device, all_gather: Callable[[bytes], list[bytes]]) -> Told:
    """Time all-reduces of the two ranks, checked. Collective."""
    size = lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(_LARGE, 2)
    with lamport_rs.LamportWorkspace(rank, 2, size, all_gather, device=device, timeout=_TIMEOUT) as workspace:
        small = _time(workspace, _SMALL, 200)
        large = _time(workspace, _LARGE, 20)
        all_gather(b"measured")
    return {"latency_us": small, "gb_per_s": _LARGE / large / 1e3}


def _time(workspace: lamport_rs.LamportWorkspace, size: int, calls: int) -> float:
    """Return the median of microseconds per all-reduce, one-shot. Collective."""
    tensor = torch.full((size // 4,), float(workspace.rank + 1), device=workspace.device)
    out = torch.empty_like(tensor)

    def call() -> None:
        lamport_rs.all_reduce(tensor, workspace, algorithm="one_shot", out=out)

    for _ in range(5):
        call()
    workspace.synchronize()
    if not bool((out == 3.0).all()):
        raise RuntimeError(f"an all-reduce of {size} bytes gave a wrong sum")
    if workspace.device.type == "cuda":
        return _time_on_gpu(call, calls)
    samples = []
    for _ in range(_SAMPLES):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - started) * 1e6 / calls)
    return statistics.median(samples)


def _time_on_gpu(call: Callable[[], None], calls: int) -> float:
    """Time a CUDA graph of the calls. A replay in front brings the two ranks together, and hides the host's time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    samples = []
    for _ in range(_SAMPLES):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(float(start.elapsed_time(end)) * 1e3 / calls)
    return statistics.median(samples)
