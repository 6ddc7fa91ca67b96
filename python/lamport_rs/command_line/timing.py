"""Latencies of collectives, measured alike for all implementations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from lamport_rs import LamportError

GRAPH_OPERATIONS = 100
"""Operations per CUDA graph that is timed, if the host can enqueue so many."""
_WARM_UP = 5
_CYCLES_PER_MICROSECOND = 2000
"""Of a GPU's clock, about."""
_DELAY, _LONGEST_DELAY = 60, 4000
"""Microseconds that the host has to enqueue a replay: at first, and at most."""
_FEWEST_OPERATIONS = 6
_ATTEMPTS = 20


@dataclass(frozen=True)
class Latency:
    """Microseconds per operation: the slowest rank's median, and the extremes of all ranks."""

    median_us: float
    min_us: float
    max_us: float
    graph_operations: int | None = None
    """Operations of the graph, if it was made shorter than others for the host to keep ahead of the device."""


def measure(operation: Callable[[], object], repetitions: int, device: torch.device) -> Latency:
    """Time `operation`, a collective call on CPU tensors, `repetitions` times back to back. Collective."""
    for _ in range(_WARM_UP):
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


class Replay:
    """A CUDA graph of operations back to back, replayed and timed as docs/measuring.md says. Methods are collective.

    A replay is enqueued whole behind a delay kernel before the device begins with it. The delay is made longer, and the
    graph shorter, until that works: launching a graph may wait for the device once a queue is full.
    """

    def __init__(
        self,
        operation: Callable[[], object],
        device: torch.device,
        capturing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Capture `operation`, a collective call on a GPU; what `capturing` returns is entered around the capture."""
        self._operation, self._device, self._capturing = operation, device, capturing
        self._delay = _DELAY
        self.host_keeps_ahead = True
        for _ in range(_WARM_UP):
            operation()
        self._capture(GRAPH_OPERATIONS)

    def settle(self, align: Callable[[], object]) -> None:
        """Find a delay and a number of operations for which the host keeps ahead, or see that there are none."""
        while self._time(align)[0]:
            if self._delay < _LONGEST_DELAY:
                self._delay *= 2
            elif self.operations > _FEWEST_OPERATIONS:
                self._capture(self.operations // 2)
            else:
                self.host_keeps_ahead = False
                return

    def time(self, align: Callable[[], object]) -> float:
        """Return the microseconds per operation of one replay; with the host's time, if it does not keep ahead.

        `align`, a collective call of at least two ranks, brings the ranks together on the GPU. Call `settle` before.
        """
        for _ in range(_ATTEMPTS):
            is_late, found = self._time(align)
            if not (is_late and self.host_keeps_ahead):
                return found
        raise LamportError("the host does not keep ahead of the device, though it did before")

    def _capture(self, operations: int) -> None:
        self.operations = operations
        torch.cuda.synchronize(self._device)
        self._graph = torch.cuda.CUDAGraph()
        with self._capturing(), torch.cuda.graph(self._graph):
            for _ in range(operations):
                self._operation()

    def _time(self, align: Callable[[], object]) -> tuple[bool, float]:
        """Likewise, and whether the device got there first on any rank, and so has waited for the host."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        torch.cuda.synchronize(self._device)
        torch.cuda._sleep(self._delay * _CYCLES_PER_MICROSECOND)
        align()
        start.record()
        self._graph.replay()
        stop.record()
        is_late = start.query()
        torch.cuda.synchronize(self._device)
        late = torch.tensor(float(is_late), device=self._device)
        dist.all_reduce(late, op=dist.ReduceOp.MAX)
        return bool(late.item()), float(start.elapsed_time(stop)) * 1e3 / self.operations


def measure_replays(
    graphs: Sequence[Replay], align: Callable[[], object], device: torch.device, replays: int = 30
) -> list[Latency]:
    """Time each graph `replays` times, in turns: what else the machine does falls on all alike. Collective."""
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(_WARM_UP + replays):
        for graph, collected in zip(graphs, times, strict=True):
            collected.append(graph.time(align))
    found = []
    for graph, collected in zip(graphs, times, strict=True):
        shorter = graph.operations if graph.operations < GRAPH_OPERATIONS else None
        found.append(replace(slowest_rank(collected[_WARM_UP:], device), graph_operations=shorter))
    return found


def measure_calls(operation: Callable[[], object], device: torch.device, samples: int = 20) -> Latency:
    """Time what `operation`, a collective call on a GPU, costs the host, in samples of 100 calls. Collective."""
    times = []
    for _ in range(_WARM_UP + samples):
        torch.cuda.synchronize(device)
        start = time.perf_counter_ns()
        for _ in range(GRAPH_OPERATIONS):
            operation()
        times.append((time.perf_counter_ns() - start) / 1e3 / GRAPH_OPERATIONS)
    torch.cuda.synchronize(device)
    return slowest_rank(times[_WARM_UP:], device)


def slowest_rank(times: list[float], device: torch.device) -> Latency:
    """Return this group's figures out of each rank's microseconds per operation. Collective."""
    own = torch.tensor([statistics.median(times), -min(times), max(times)], dtype=torch.float64, device=device)
    dist.all_reduce(own, op=dist.ReduceOp.MAX)
    median, negative_min, largest = own.tolist()
    return Latency(median, -negative_min, largest)
