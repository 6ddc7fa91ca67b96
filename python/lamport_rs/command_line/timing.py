"""Latencies of collectives, measured alike for all implementations."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

_WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Microseconds per operation: the slowest rank's median, and the extremes of all ranks."""

    median_us: float
    min_us: float
    max_us: float


def measure(operation: Callable[[], object], repetitions: int, device: torch.device) -> Latency:
    """Time `operation`, a collective call, `repetitions` times back to back. Collective.

    On the CPU each call is timed by the clock. On a GPU the calls are timed by events around each.
    """
    for _ in range(_WARM_UP):
        operation()
    dist.barrier()
    times = _times_on_gpu(operation, repetitions) if device.type == "cuda" else _times_on_cpu(operation, repetitions)
    own = torch.tensor([statistics.median(times), -min(times), max(times)], dtype=torch.float64, device=device)
    dist.all_reduce(own, op=dist.ReduceOp.MAX)
    median, negative_min, largest = own.tolist()
    return Latency(median, -negative_min, largest)


def _times_on_cpu(operation: Callable[[], object], repetitions: int) -> list[float]:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter_ns()
        operation()
        times.append((time.perf_counter_ns() - start) / 1e3)
    return times


def _times_on_gpu(operation: Callable[[], object], repetitions: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    events[0].record()
    for event in events[1:]:
        operation()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) * 1e3 for start, stop in itertools.pairwise(events)]
