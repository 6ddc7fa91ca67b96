"""A rank's part of a run: every case, by every implementation that can do it, checked, then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

import lamport_rs
from lamport_rs.command_line.bench import costs
from lamport_rs.command_line.bench.arguments import BACK_TO_BACK, COSTS, NO_COMMUNICATION, STEPS
from lamport_rs.command_line.bench.cases import Case, largest_message
from lamport_rs.command_line.bench.decode_step import pose_decode_step
from lamport_rs.command_line.bench.findings import Findings, Missing
from lamport_rs.command_line.bench.graphs import Calls, GraphTimer, Timed
from lamport_rs.command_line.bench.implementations import Call, Implementation, Outputs, implementations_of
from lamport_rs.command_line.bench.member import Member, UnavailableError, join
from lamport_rs.command_line.bench.options import Options
from lamport_rs.command_line.bench.problems import EPSILON, Problem, pose
from lamport_rs.command_line.bench.progress import Progress
from lamport_rs.command_line.bench.record import Row
from lamport_rs.command_line.timing import measure_in_turns

T = TypeVar("T")


class WrongResultError(Exception):
    """An implementation returned something else than the sum."""


def run_rank(rank: int, world_size: int, device: torch.device, options: Options, path: Path) -> None:
    """Measure what the options ask for; rank 0 leaves its findings at `path`. Collective."""
    cases = [case for op in options.compared for case in options.cases_of(op)]
    largest = largest_message(cases) or (1 << 20)
    most_tokens = max([case.tokens or 0 for case in cases], default=0) or 1
    where = f"{world_size} GPUs" if device.type == "cuda" else f"{world_size} processes"
    with join(rank, world_size, device, largest, most_tokens) as member:
        progress = Progress(where, len(cases) + len(options.costs), speaks=rank == 0)
        bench = Bench(member, options, progress, path if rank == 0 else None)
        for what in (*options.compared, *options.costs):
            bench.measure(what)
        progress.close()


class Bench:
    """A rank at work; every method is collective."""

    def __init__(self, member: Member, options: Options, progress: Progress, path: Path | None) -> None:
        """Measure what the options ask for, and leave the findings at `path`, if this rank is to."""
        self._findings, self._path = Findings(), path
        self._member, self._options, self._progress = member, options, progress
        # The least that brings the ranks together on the GPU; it is there whatever else is not. With a workspace of its
        # own: it would clear, at length, what a measured operation has left.
        workspace = lamport_rs.LamportWorkspace(
            member.rank, member.world_size, 4096, member.host_group, device=member.device
        )
        row = torch.ones(1, 8, device=member.device, dtype=torch.bfloat16)
        out, arguments = torch.empty_like(row), (workspace, member.rank, member.world_size, EPSILON)
        self._align = lambda: lamport_rs.minimax_allreduce_rms(row, row[0], *arguments, out=out)

    def measure(self, what: str) -> None:
        """Measure one of `COLLECTIVES`, `STEPS` or `COSTS`."""
        if what in COSTS:
            self._measure_cost(what)
        else:
            self._compare(what)

    def _compare(self, op: str) -> None:
        """Measure an operation at all sizes, by all implementations that were asked for."""
        cases = self._options.cases_of(op)
        present: list[Implementation] = []
        for create in implementations_of(op, self._options.backend):
            if self._options.wants(create.name) or create.name == NO_COMMUNICATION:
                self._progress.doing(f"{op}: setting up {create.name}")
                implementation = self._attempt(f"{op} by {create.name}", partial(create, self._member, cases))
                if implementation is not None:
                    present.append(implementation)
        for case in cases:
            self._measure_case(case, present)
        for implementation in present:
            self._attempt(f"closing {implementation.name}", implementation.close)
        self._save()

    def _save(self) -> None:
        """Leave what there is: a run that ends early has not been in vain."""
        if self._path is not None:
            self._findings.write(self._path)

    def _measure_case(self, case: Case, present: Sequence[Implementation]) -> None:
        if case.op not in STEPS:
            self._measure_problem(pose(case, self._member), present)
            return
        self._progress.doing(f"{case}: making the model")
        step = self._attempt(case.op, partial(pose_decode_step, case, self._member), case)
        if step is None:
            self._report(case, [])
        else:
            self._measure_problem(step, present)

    def _measure_problem(self, problem: Problem, present: Sequence[Implementation]) -> None:
        case = problem.case
        calls: list[tuple[Implementation, Call]] = []
        for implementation in present:
            self._progress.doing(f"{case}: checking {implementation.name}")
            what = f"{case.op} by {implementation.name}"
            # All have to be prepared before any runs: the others would wait for a rank that is not.
            call = self._attempt(what, partial(implementation.prepare, problem), case)
            outputs = None if call is None else self._attempt(what, call.run, case)
            if call is not None and outputs is not None:
                self._verify(implementation, problem, outputs)
                calls.append((implementation, call))
        timed = self._time(problem, calls)
        for each in timed:
            if each.outputs is not None:
                self._verify(each.implementation, problem, each.outputs)
        self._report(case, timed)

    def _time(self, problem: Problem, calls: Calls) -> list[Timed]:
        for _, call in calls:
            if call.in_place is not None:
                call.in_place.zero_()  # Sums of sums would overflow, and denormals and infinities may take longer.
        device, samples = self._member.device, self._options.samples
        if device.type != "cuda":
            self._progress.doing(f"{problem.case}: timing")
            found = measure_in_turns([call.run for _, call in calls], samples, device)
            return [
                Timed(each, BACK_TO_BACK, latency, call.run() if call.in_place is None else None)
                for (each, call), latency in zip(calls, found, strict=True)
            ]
        self._progress.doing(f"{problem.case}: capturing and timing")
        timer = GraphTimer(self._align, self._attempt, samples)
        return timer.measure(problem, calls, self._options.timings_of(problem.case.op), device)

    def _verify(self, implementation: Implementation, problem: Problem, outputs: Outputs) -> None:
        if not implementation.solves:
            return
        reason = None
        try:
            self._member.synchronize()
            problem.check(outputs, implementation.rounds_once)
        except AssertionError as error:
            reason = str(error)
        if (agreed := self._member.agree(reason)) is not None:
            raise WrongResultError(f"{problem.case} by {implementation.name} is wrong: {agreed}")

    def _report(self, case: Case, timed: Sequence[Timed]) -> None:
        rows = [
            Row.of(case, each.implementation.name, self._member.world_size, each.latency, each.timing) for each in timed
        ]
        self._findings.rows += rows
        self._save()
        figures = ", ".join(
            f"{row.impl}{'' if row.timing == BACK_TO_BACK else ', ' + row.timing} {row.median_us:.2f}" for row in rows
        )
        self._progress.done(f"{case}: {figures} us" if figures else f"{case}: nothing could be measured")

    def _measure_cost(self, cost: str) -> None:
        self._progress.doing(cost)
        if cost == "create_workspace":
            found = [self._attempt(cost, partial(costs.create_workspace, self._member))]
        else:
            found = [
                self._attempt(f"{case.op} by {name}", partial(costs.measure_host_time, self._member, case, name, call))
                for case, name, call in costs.host_time_calls(self._member)
                if self._options.wants(name.partition(",")[0]) or name.startswith("torch.")
            ]
        rows = [row for row in found if row is not None]
        self._findings.rows += rows
        self._save()
        self._progress.done(
            f"{cost}: " + ", ".join(f"{row.op} by {row.impl} {row.median_us:.2f}" for row in rows) + " us"
        )

    def _attempt(self, what: str, action: Callable[[], T], case: Case | None = None) -> T | None:
        """What `action` does, or None, noting why, if it fails on any rank."""
        try:
            return self._member.attempt(action)
        except UnavailableError as error:
            size = None if case is None else case.size_and_width
            self._findings.missing.append(Missing(what, self._member.world_size, str(error), size))
            return None
