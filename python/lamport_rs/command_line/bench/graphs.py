"""Calls timed out of CUDA graphs: back to back, or with another kernel between, as a model has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import torch

from lamport_rs.command_line.bench.arguments import KERNEL_BETWEEN, STEPS
from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.implementations import Call, Implementation
from lamport_rs.command_line.bench.problems import Problem
from lamport_rs.command_line.replay import Replay, measure_replays
from lamport_rs.command_line.timing import GRAPH_OPERATIONS, Latency

T = TypeVar("T")
Latencies: TypeAlias = dict[tuple[str, str], Latency]
"""By implementation, and by how it was timed."""
Calls: TypeAlias = Sequence[tuple[Implementation, Call]]
_KERNEL = "the kernel between, alone"


class Attempt(Protocol):
    """What `action` does, or None, noting why of `what`, if it fails on any rank. Collective."""

    def __call__(self, what: str, action: Callable[[], T], case: Case) -> T | None:
        """Try it."""


class GraphTimer:
    """Captures and times the calls of one problem after the other. Every method is collective."""

    def __init__(self, align: Callable[[], object], attempt: Attempt, replays: int) -> None:
        """Time by so many `replays`, each behind `align`; what cannot be captured is noted by `attempt`."""
        self._align, self._attempt, self._replays = align, attempt, replays

    def measure(self, problem: Problem, calls: Calls, timings: Sequence[str], device: torch.device) -> Latencies:
        """Return the latency of each call, timed in each of these ways, all of them in turns."""
        graphs: dict[tuple[str, str], Replay] = {}
        for timing in timings:
            capture = partial(self._capture, case=problem.case, timing=timing, device=device)
            between = Between(problem.expected[0].values) if timing == KERNEL_BETWEEN else None
            if between is not None:
                alone = capture(_KERNEL, between.alone)
                if alone is None:
                    continue
                graphs[_KERNEL, timing] = alone
            for implementation, call in calls:
                operation = call.run if between is None else between.after(call.run)
                graph = capture(f"by {implementation.name}", operation, implementation.capturing)
                if graph is not None:
                    graphs[implementation.name, timing] = graph
        found = measure_replays(list(graphs.values()), self._align, self._replays)
        return _without_the_kernel(dict(zip(graphs, found, strict=True)))

    def _capture(
        self,
        who: str,
        operation: Callable[[], object],
        capturing: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        case: Case,
        timing: str,
        device: torch.device,
    ) -> Replay | None:
        """Return a CUDA graph that is ready to be timed; None, noting why, if there is none."""
        what = f"{case.op} {who}, {timing}, in a CUDA graph"
        operations = 1 if case.op in STEPS else GRAPH_OPERATIONS
        graph = self._attempt(what, partial(Replay, operation, device, capturing, operations), case)
        return None if graph is None else self._attempt(what, partial(_settled, graph, self._align), case)


class Between:
    """An elementwise kernel that reads the result of an operation. What it writes is not looked at."""

    def __init__(self, like: torch.Tensor) -> None:
        """Make one for results of the shape and the dtype of `like`."""
        self._like, self._out = like, torch.empty_like(like)

    def after(self, operation: Callable[[], Sequence[torch.Tensor]]) -> Callable[[], object]:
        """Return the operation with the kernel behind it."""
        return lambda: self._run(operation()[0])

    def alone(self) -> object:
        """Run the kernel without an operation, to see what is its own time."""
        return self._run(self._like)

    def _run(self, result: torch.Tensor) -> torch.Tensor:
        return torch.mul(result, 0.5, out=self._out)


def _without_the_kernel(found: Latencies) -> Latencies:
    """Take the own time of the kernel between operations off what was measured with it."""
    kernel = found.pop((_KERNEL, KERNEL_BETWEEN), None)
    return {
        (name, timing): latency.less(kernel.median_us) if kernel and timing == KERNEL_BETWEEN else latency
        for (name, timing), latency in found.items()
    }


def _settled(graph: Replay, align: Callable[[], object]) -> Replay:
    graph.settle(align)
    return graph
