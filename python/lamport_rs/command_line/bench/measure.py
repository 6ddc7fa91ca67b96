"""A rank's part of a run: every case, by every implementation that can do it, checked, then timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

import lamport_rs
from lamport_rs.command_line.bench import costs
from lamport_rs.command_line.bench.cases import Case, message_bytes
from lamport_rs.command_line.bench.implementations import Call, Implementation, Outputs, implementations_of
from lamport_rs.command_line.bench.member import Member, UnavailableError, join
from lamport_rs.command_line.bench.options import Options
from lamport_rs.command_line.bench.problems import EPSILON, Problem, pose
from lamport_rs.command_line.bench.progress import Progress
from lamport_rs.command_line.bench.record import Row
from lamport_rs.command_line.timing import Latency, measure_graph, measure_in_turns

T = TypeVar("T")


class WrongResultError(Exception):
    """An implementation returned something else than the sum."""


@dataclass
class Findings:
    """What a run found: rows, and what could not be measured, with the reasons."""

    rows: list[Row] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Leave them for the process that launched the ranks."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Findings:
        """Return what a rank left."""
        found = json.loads(path.read_text())
        return cls([Row(**row) for row in found["rows"]], found["unavailable"])


def run_rank(rank: int, world_size: int, device: torch.device, options: Options, path: Path) -> None:
    """Measure what the options ask for; rank 0 leaves its findings at `path`. Collective."""
    cases = [case for op in options.collectives for case in options.cases_of(op)]
    largest = max([message_bytes(case) or 0 for case in cases], default=0) or (1 << 20)
    most_tokens = max([case.tokens or 0 for case in cases], default=0) or 1
    where = f"{world_size} GPUs" if device.type == "cuda" else f"{world_size} processes"
    with join(rank, world_size, device, largest, most_tokens) as member:
        progress = Progress(where, len(cases) + len(options.costs), speaks=rank == 0)
        bench = Bench(member, options, progress)
        for measure, what in [
            *((bench.measure_operation, op) for op in options.collectives),
            *((bench.measure_cost, cost) for cost in options.costs),
        ]:
            measure(what)
            if rank == 0:
                bench.findings.write(path)  # Each time: a run that fails later has not been in vain.
        progress.close()


class Bench:
    """A rank at work; every method is collective."""

    def __init__(self, member: Member, options: Options, progress: Progress) -> None:
        self.findings = Findings()
        self._member, self._options, self._progress = member, options, progress
        # The least that brings the ranks together on the GPU; it is there whatever else is not.
        row = torch.ones(1, 8, device=member.device, dtype=torch.bfloat16)
        out, arguments = torch.empty_like(row), (member.workspace, member.rank, member.world_size, EPSILON)
        self._align = lambda: lamport_rs.minimax_allreduce_rms(row, row[0], *arguments, out=out)

    def measure_operation(self, op: str) -> None:
        """Measure an operation at all sizes, by all implementations that were asked for."""
        cases = self._options.cases_of(op)
        present: list[Implementation] = []
        for create in implementations_of(op, self._options.backend):
            if self._options.wants(create.name):
                self._progress.doing(f"{op}: setting up {create.name}")
                implementation = self._attempt(f"{op} by {create.name}", partial(create, self._member, cases))
                if implementation is not None:
                    present.append(implementation)
        for case in cases:
            present = self._measure_case(case, present)
        for implementation in present:
            self._attempt(f"closing {implementation.name}", implementation.close)

    def _measure_case(self, case: Case, present: list[Implementation]) -> list[Implementation]:
        """Measure a case; return the implementations that are worth trying with the next."""
        problem = pose(case, self._member)
        remaining: list[Implementation] = []
        calls: list[tuple[Implementation, Call]] = []
        for implementation in present:
            self._progress.doing(f"{case}: checking {implementation.name}")
            call = self._attempt(f"{case} by {implementation.name}", partial(implementation.prepare, problem))
            if call is None:  # What cannot be prepared at one size may be at another.
                remaining.append(implementation)
                continue
            outputs = self._attempt(f"{case.op} by {implementation.name}", call.run)
            if outputs is not None:
                self._verify(implementation, problem, outputs)
                remaining.append(implementation)
                calls.append((implementation, call))
        latencies = self._time(case, calls)
        for implementation, call in calls:
            if call.in_place is None and implementation.name in latencies:
                self._verify(implementation, problem, call.run())
        self._report(case, latencies)
        return remaining

    def _time(self, case: Case, calls: Sequence[tuple[Implementation, Call]]) -> dict[str, Latency]:
        device, samples = self._member.device, self._options.samples
        for _, call in calls:
            if call.in_place is not None:
                call.in_place.zero_()  # Sums of sums would overflow, and denormals and infinities may take longer.
        if device.type != "cuda":
            found = measure_in_turns([call.run for _, call in calls], samples, device)
            return {implementation.name: latency for (implementation, _), latency in zip(calls, found, strict=True)}
        latencies = {}
        for implementation, call in calls:
            self._progress.doing(f"{case}: timing {implementation.name}")
            measured = self._attempt(
                f"{case} by {implementation.name} in a CUDA graph",
                partial(measure_graph, call.run, self._align, device, samples, implementation.capturing()),
            )
            if measured is not None:
                latencies[implementation.name] = measured
        return latencies

    def _verify(self, implementation: Implementation, problem: Problem, outputs: Outputs) -> None:
        reason = None
        try:
            self._member.synchronize()
            problem.check(outputs, implementation.rounds_once)
        except AssertionError as error:
            reason = str(error)
        if (agreed := self._member.agree(reason)) is not None:
            raise WrongResultError(f"{problem.case} by {implementation.name} is wrong: {agreed}")

    def _report(self, case: Case, latencies: dict[str, Latency]) -> None:
        for name, latency in latencies.items():
            self.findings.rows.append(Row.of(case, name, self._member.world_size, latency))
        figures = ", ".join(f"{name} {latency.median_us:.2f}" for name, latency in latencies.items())
        self._progress.done(f"{case}: {figures} us" if figures else f"{case}: nothing could be measured")

    def measure_cost(self, cost: str) -> None:
        """Measure one of `COSTS`."""
        self._progress.doing(cost)
        if cost == "create_workspace":
            found = [self._attempt(cost, partial(costs.create_workspace, self._member))]
        else:
            found = [
                self._attempt(f"{case.op} by {name}", partial(costs.measure_host_time, self._member, case, name, call))
                for case, name, call in costs.host_time_calls(self._member)
                if self._options.wants(name.partition(",")[0])
            ]
        rows = [row for row in found if row is not None]
        self.findings.rows += rows
        self._progress.done(
            f"{cost}: " + ", ".join(f"{row.op} by {row.impl} {row.median_us:.2f}" for row in rows) + " us"
        )

    def _attempt(self, what: str, action: Callable[[], T]) -> T | None:
        """What `action` does, or None, noting why, if it fails on any rank."""
        try:
            return self._member.attempt(action)
        except UnavailableError as error:
            self.findings.unavailable[what] = str(error)
            return None
