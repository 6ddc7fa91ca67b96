"""CUDA graphs of collectives, replayed and timed as docs/measuring.md says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache

import torch
import torch.distributed as dist

from lamport_rs.command_line.timing import GRAPH_OPERATIONS, WARM_UP, Latency, slowest_rank

_CYCLES_PER_MICROSECOND = 2000
"""Of a GPU's clock, about."""
_DELAY, _LONGEST_DELAY = 60, 4000
"""Microseconds that the host has to enqueue a replay: at first, and at most."""
_FEWEST_OPERATIONS = 6
_TRIALS = 3
"""Replays in a row for which the host must have kept ahead."""
_ATTEMPTS = 20
"""Replays, at most, for one that counts."""
_GRAPHS_OF_A_SERVER = 4
"""Of a process in which CUDA begins each kernel of a graph later, as in all that serve models; fewer are faster."""


class Replay:
    """A CUDA graph of an operation, over and over. Every method is collective.

    A replay is enqueued whole behind a delay kernel before the device begins with it. The delay is made longer, and the
    graph shorter, until that works: launching a graph may wait for the device once a queue is full.
    """

    def __init__(
        self,
        operation: Callable[[], object],
        device: torch.device,
        capturing: Callable[[], AbstractContextManager[object]] = nullcontext,
        operations: int = GRAPH_OPERATIONS,
    ) -> None:
        """Capture `operation`, a collective call on a GPU, `operations` times.

        What `capturing` returns is entered around the capture.
        """
        self._operation, self._device, self._capturing = operation, device, capturing
        self._wanted = operations
        self._delay = _DELAY
        self.host_keeps_ahead = True
        """Whether the figures are the device's alone."""
        for _ in range(WARM_UP):
            operation()
        self._capture(operations)

    def settle(self, align: Callable[[], object]) -> None:
        """Find a delay and a number of operations for which the host keeps ahead, or see that there are none."""
        while not all(self._is_on_time(align) for _ in range(_TRIALS)):
            if self._delay < _LONGEST_DELAY:
                self._lengthen_delay()
            elif self.operations > _FEWEST_OPERATIONS:
                self._capture(max(self.operations // 2, _FEWEST_OPERATIONS))
            else:
                self.host_keeps_ahead = False
                return

    def time(self, align: Callable[[], object]) -> float:
        """Return the microseconds per operation of one replay; with the host's time, if it does not keep ahead.

        `align`, a collective call of at least two ranks, brings the ranks together on the GPU. Call `settle` before.
        """
        for _ in range(_ATTEMPTS if self.host_keeps_ahead else 1):
            is_late, found = self._time(align)
            if not is_late:
                return found
            # A delay that was long enough may not be while the host is busy with something else.
            self._lengthen_delay()
        self.host_keeps_ahead = False
        return found

    def latency_of(self, times: list[float]) -> Latency:
        """Return this group's figures out of each rank's times."""
        shorter = self.operations if self.operations < self._wanted else None
        found = slowest_rank(times, self._device)
        return replace(found, graph_operations=shorter, host_included=None if self.host_keeps_ahead else True)

    def _capture(self, operations: int) -> None:
        self.operations = operations
        self._plain_kernel = _like_a_server(self._device)
        torch.cuda.synchronize(self._device)
        self._graph = torch.cuda.CUDAGraph()
        with self._capturing(), torch.cuda.graph(self._graph):
            for _ in range(operations):
                self._operation()

    def _lengthen_delay(self) -> None:
        self._delay = min(2 * self._delay, _LONGEST_DELAY)

    def _is_on_time(self, align: Callable[[], object]) -> bool:
        is_late, _ = self._time(align)
        return not is_late

    def _time(self, align: Callable[[], object]) -> tuple[bool, float]:
        """Whether the device got there first on any rank, and so has waited for the host; and the time."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        torch.cuda.synchronize(self._device)
        torch.cuda._sleep(self._delay * _CYCLES_PER_MICROSECOND)
        align()
        # Behind a kernel with dependent launch, as an aligning operation may be, every other replay is a faster one.
        self._plain_kernel()
        start.record()
        self._graph.replay()
        stop.record()
        is_late = start.query()
        torch.cuda.synchronize(self._device)
        # All ranks take the same way from here.
        late = torch.tensor(float(is_late), device=self._device)
        dist.all_reduce(late, op=dist.ReduceOp.MAX)
        return bool(late.item()), float(start.elapsed_time(stop)) * 1e3 / self.operations


@cache
def _like_a_server(device: torch.device) -> Callable[[], object]:
    """Make the graphs that it takes for all replays to have one speed. Return what launches a plain kernel."""
    number = torch.zeros((), device=device)
    number.add_(1)
    torch.cuda.synchronize(device)
    graphs = [torch.cuda.CUDAGraph() for _ in range(_GRAPHS_OF_A_SERVER)]
    for graph in graphs:
        with torch.cuda.graph(graph):
            number.add_(1)

    def launch() -> object:
        # Graphs that nothing holds would go.
        assert graphs
        return number.add_(1)

    return launch


def measure_replays(graphs: Sequence[Replay], align: Callable[[], object], replays: int = 30) -> list[Latency]:
    """Time each graph, settled before, `replays` times. Collective.

    In turns, so that what else the machine does falls on all alike. Each turn begins with another graph, so that none
    is always measured behind the same one.
    """
    times: list[list[float]] = [[] for _ in graphs]
    for turn in range(WARM_UP + replays):
        for step in range(len(graphs)):
            index = (turn + step) % len(graphs)
            times[index].append(graphs[index].time(align))
    return [graph.latency_of(collected[WARM_UP:]) for graph, collected in zip(graphs, times, strict=True)]
