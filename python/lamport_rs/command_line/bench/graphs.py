"""Calls timed out of CUDA graphs: back to back, or with another kernel between, as a model has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import torch

from lamport_rs.command_line.bench.arguments import KERNEL_BETWEEN, NORM_BETWEEN, PRODUCT_BETWEEN, STEPS
from lamport_rs.command_line.bench.between import Between, NormBetween, ProductBetween
from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.implementations import Call, Implementation, Outputs
from lamport_rs.command_line.bench.problems import Problem
from lamport_rs.command_line.replay import Replay, measure_replays
from lamport_rs.command_line.timing import GRAPH_OPERATIONS, Latency

T = TypeVar("T")
Calls: TypeAlias = Sequence[tuple[Implementation, Call]]


@dataclass(frozen=True)
class Timed:
    """A call's latency."""

    implementation: Implementation
    timing: str
    """One of `TIMINGS`."""
    latency: Latency
    outputs: Outputs | None
    """What the timed operations have left, or others after them; None if it is no result, as they worked in place."""


class Attempt(Protocol):
    """What `action` does, or None, noting why of `what`, if it fails on any rank. Collective."""

    def __call__(self, what: str, action: Callable[[], T], case: Case) -> T | None:
        """Try it."""


class GraphTimer:
    """Captures and times the calls of one problem after the other. Every method is collective."""

    def __init__(self, align: Callable[[], object], attempt: Attempt, replays: int) -> None:
        """Time by so many `replays`, each behind `align`; what cannot be captured is noted by `attempt`."""
        self._align, self._attempt, self._replays = align, attempt, replays

    def measure(self, problem: Problem, calls: Calls, timings: Sequence[str], device: torch.device) -> list[Timed]:
        """Time each call in each of these ways, all of them in turns."""
        capture = partial(self._capture, case=problem.case, device=device)
        captured: list[tuple[Implementation, str, Operation, Replay]] = []
        kernels: dict[str, Replay] = {}
        for timing in timings:
            between = kernel_between(timing, problem.expected[0].values)
            if between is not None:
                kernel = capture(f"with nothing but the kernel of {timing}", between.alone)
                if kernel is None:
                    continue
                kernels[timing] = kernel
            for implementation, call in calls:
                operation = Operation(call, between)
                graph = capture(f"by {implementation.name}, {timing}", operation, implementation.capturing)
                if graph is not None:
                    captured.append((implementation, timing, operation, graph))
        graphs = [*(graph for *_, graph in captured), *kernels.values()]
        found = measure_replays(graphs, self._align, self._replays)
        own = {timing: found[len(captured) + place].median_us for place, timing in enumerate(kernels)}
        return [
            Timed(implementation, timing, latency.less(own.get(timing, 0.0)), operation.results)
            for (implementation, timing, operation, _), latency in zip(captured, found, strict=False)
        ]

    def _capture(
        self,
        who: str,
        operation: Callable[[], object],
        capturing: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        case: Case,
        device: torch.device,
    ) -> Replay | None:
        """Return a CUDA graph that is ready to be timed; None, noting why, if there is none."""
        what = f"{case.op} {who}, in a CUDA graph"
        operations = 1 if case.op in STEPS else GRAPH_OPERATIONS
        graph = self._attempt(what, partial(Replay, operation, device, capturing, operations), case)
        return None if graph is None else self._attempt(what, partial(_settled, graph, self._align), case)


def kernel_between(timing: str, like: torch.Tensor) -> Between | None:
    """Return what stands between two operations that have results like `like`; None for nothing."""
    kinds = {KERNEL_BETWEEN: Between, NORM_BETWEEN: NormBetween, PRODUCT_BETWEEN: ProductBetween}
    return kinds[timing](like) if timing in kinds else None


class Operation:
    """What is captured: a call, and the kernel behind it, if there is one."""

    def __init__(self, call: Call, between: Between | None) -> None:
        """Make one of `call`."""
        self._call, self._between = call, between
        self._outputs: Outputs = ()

    def __call__(self) -> None:
        """Run it."""
        self._outputs = self._call.run()
        if self._between is not None:
            self._between.after(self._outputs[0])

    @property
    def results(self) -> Outputs | None:
        """Where the last one's results are: in a graph, after each replay; None if it worked in place."""
        return None if self._call.in_place is not None else self._outputs


def _settled(graph: Replay, align: Callable[[], object]) -> Replay:
    graph.settle(align)
    return graph
