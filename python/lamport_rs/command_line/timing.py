"""Latencies of collectives, measured alike for all implementations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

GRAPH_OPERATIONS = 100
"""Operations per CUDA graph that is timed, if the host can enqueue so many; and calls per sample of the host's time."""
WARM_UP = 5
"""Calls, or samples, before those that count."""


@dataclass(frozen=True)
class Latency:
    """Microseconds per operation: the slowest rank's median, and the extremes of all ranks."""

    median_us: float
    min_us: float
    max_us: float
    graph_operations: int | None = None
    """Operations of the CUDA graph, if it was made shorter than others for the host to keep ahead of the device."""
    host_included: bool | None = None
    """True if the device has waited for the host all the same."""

    def less(self, microseconds: float) -> Latency:
        """Return the figures with `microseconds`, which something else took, taken off."""
        least, most = self.min_us - microseconds, self.max_us - microseconds
        return replace(self, median_us=self.median_us - microseconds, min_us=least, max_us=most)


def measure(operation: Callable[[], object], repetitions: int, device: torch.device) -> Latency:
    """Time `operation`, a collective call on CPU tensors, `repetitions` times back to back. Collective."""
    for _ in range(WARM_UP):
        operation()
    dist.barrier()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter_ns()
        operation()
        times.append((time.perf_counter_ns() - start) / 1e3)
    return slowest_rank(times, device)


def measure_in_turns(
    operations: Sequence[Callable[[], object]], rounds: int, device: torch.device, seconds: float = 0.05
) -> list[Latency]:
    """Time collective calls on CPU tensors: each back to back for some `seconds`, in turns, `rounds` times. Collective.

    In turns, so that whatever else the machine does falls on all alike.
    """
    repetitions = [_repetitions(operation, seconds, device) for operation in operations]
    latencies: list[list[Latency]] = [[] for _ in operations]
    for _ in range(rounds):
        for operation, count, collected in zip(operations, repetitions, latencies, strict=True):
            collected.append(measure(operation, count, device))
    return [
        Latency(
            statistics.median(latency.median_us for latency in collected),
            min(latency.min_us for latency in collected),
            max(latency.max_us for latency in collected),
        )
        for collected in latencies
    ]


def _repetitions(operation: Callable[[], object], seconds: float, device: torch.device) -> int:
    """How often to call for a sample of `seconds`, the same on all ranks."""
    return int(min(500, max(5, seconds * 1e6 / max(measure(operation, 3, device).median_us, 1.0))))


def measure_calls(operation: Callable[[], object], device: torch.device, samples: int = 20) -> Latency:
    """Time what `operation`, a collective call on a GPU, costs the host, in samples of 100 calls. Collective."""
    times = []
    for _ in range(WARM_UP + samples):
        torch.cuda.synchronize(device)
        start = time.perf_counter_ns()
        for _ in range(GRAPH_OPERATIONS):
            operation()
        times.append((time.perf_counter_ns() - start) / 1e3 / GRAPH_OPERATIONS)
    torch.cuda.synchronize(device)
    return slowest_rank(times[WARM_UP:], device)


def slowest_rank(times: list[float], device: torch.device) -> Latency:
    """Return this group's figures out of each rank's microseconds per operation. Collective."""
    own = torch.tensor([statistics.median(times), -min(times), max(times)], dtype=torch.float64, device=device)
    dist.all_reduce(own, op=dist.ReduceOp.MAX)
    median, negative_min, largest = own.tolist()
    return Latency(median, -negative_min, largest)
