"""Ten million operations on GPUs, most of them in graphs, every result compared bit for bit on the device:

    python tests/gpu/soak_gpu.py --out benchmarks/results/2026-01-02-soak-h100-x2.json

Graphs hold two hundred operations of mixed kinds, sizes and dtypes back to back, with pauses of which each rank has its
own, and at their end the comparison of all their results. Between graphs there are eager operations, ranks that are
late, and other streams that load the memory. It takes some minutes on two H100.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from minimax_rows import Operation
from moe_reductions import FinalisedNorm, FinalisedReduction
from ranks import ProcessRanks, Rank, one_gpu_per_rank
from reductions import LayerNormedReduction, NormedReduction, QuantisedReduction, QuantisedSum, Reduction, comm_size_for
from soak_programs import POISON, Case, Maker, Program, impartial_digest, make_cases, make_makers, make_programs
from soak_report import Clock, Outcome, describe_start, parse_arguments, report
from test_cuda_soak import MINIMAX, MOST_BYTES, NORMS, SUMS

QUANTISED = [
    *[(1, 4096, "one_shot", "fp8_token"), (7, 520, "two_shot", "fp8_token"), (2, 20_000, "one_shot", "fp8_token")],
    *[(3, 1024, "one_shot", "fp8_group"), (32, 4096, "two_shot", "fp8_group"), (5, 9088, "two_shot", "fp8_group")],
    *[(1, 4096, "one_shot", "mxfp8"), (7, 544, "two_shot", "mxfp8"), (2, 16_384, "one_shot", "mxfp8")],
    *[(3, 1024, "one_shot", "nvfp4"), (32, 4096, "two_shot", "nvfp4"), (5, 9088, "two_shot", "nvfp4")],
]
"""Held rows and wide ones, of scales of all kinds."""
OPERATIONS = 10_000_000
PROGRAMS, LENGTH = 24, 200
LOOK = 50
"""Replays between two looks at the clock and at what was counted: as far as the host is ahead."""
PAUSE, PAUSE_CYCLES = 0.01, 40_000
LONG_PAUSE, LONG_PAUSE_CYCLES = 0.0005, 400_000
"""How often a rank pauses within a graph, and for how many cycles at most: 20 and 200 us."""
LATE, LATE_SECONDS, LATE_CYCLES = 0.02, 0.002, 2_000_000
"""How often a rank is late between graphs, and by how much at most, on the processor or on the GPU."""
MOST_EAGER = 6
LOAD, LOAD_BYTES, HOST_LOAD_BYTES = 0.5, 256 << 20, 16 << 20


def makers() -> list[Maker]:
    """Of all kinds."""
    return make_makers(
        (Operation, MINIMAX),
        (Reduction, SUMS),
        (NormedReduction, NORMS),
        (QuantisedReduction, QUANTISED),
        (QuantisedSum, QUANTISED),
        (LayerNormedReduction, [(*shape[:2], "one_shot") for shape in NORMS]),
        (FinalisedReduction, [shape[:2] for shape in NORMS]),
        (FinalisedNorm, [shape[:2] for shape in NORMS]),
    )


def rather_small(case: Case) -> float:
    """How often a case is taken: the smaller, the more often."""
    return 1 / (65_536 + case.bytes)


class Checked:
    """A program, and on the device how many words of its results were wrong and where the first was."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self.program = program
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.first = torch.zeros((), dtype=torch.int64, device=device)

    def check(self) -> None:
        """Compare, count and poison. Nothing waits, so it can be captured."""
        differs = self.program.words != self.program.expected
        count = differs.sum()
        is_first = (self.wrong == 0) & (count > 0)
        self.first.copy_(torch.where(is_first, differs.view(torch.uint8).argmax(), self.first))
        self.wrong += count
        self.program.words.fill_(POISON)

    def capture(self, workspace, own_dice: random.Random, pool) -> torch.cuda.CUDAGraph:
        """The program with this rank's pauses, and the check of it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            for step in self.program.steps:
                chance = own_dice.random()
                if chance < LONG_PAUSE:
                    torch.cuda._sleep(own_dice.randrange(LONG_PAUSE_CYCLES))
                elif chance < PAUSE:
                    torch.cuda._sleep(own_dice.randrange(PAUSE_CYCLES))
                step(workspace)
            self.check()
        return graph


class Load:
    """Other streams that move memory, within the GPU and from the host."""

    def __init__(self, device: torch.device) -> None:
        self.count = 0
        large, small = LOAD_BYTES // 4, HOST_LOAD_BYTES // 4
        self._pairs = [
            (torch.zeros(large, device=device), torch.zeros(large, device=device)),
            (torch.zeros(small, device=device), torch.zeros(small).pin_memory()),
        ]
        self._streams = [torch.cuda.Stream() for _ in self._pairs]

    def move(self) -> None:
        """Start each copy that is not running yet."""
        for stream, (target, source) in zip(self._streams, self._pairs, strict=True):
            if stream.query():
                with torch.cuda.stream(stream):
                    target.copy_(source, non_blocking=True)
                self.count += 1


class Eager:
    """A program of which a few operations are run at a time."""

    def __init__(self, checked: Checked) -> None:
        self._checked, self._next = checked, 0

    def run(self, workspace, count: int, outcome: Outcome) -> None:
        """Run the next ones, and check all once all have been run."""
        for _ in range(count):
            self._checked.program.steps[self._next](workspace)
            self._next += 1
            if self._next == len(self._checked.program.steps):
                self._checked.check()
                self._next = 0
                outcome.add(self._checked.program)


def be_late(own_dice: random.Random, outcome: Outcome) -> None:
    """Now and then, on the processor or on the GPU."""
    chance = own_dice.random()
    if chance < LATE:
        outcome.delays += 1
        if chance < LATE / 2:
            time.sleep(own_dice.uniform(0, LATE_SECONDS))
        else:
            torch.cuda._sleep(own_dice.randrange(LATE_CYCLES))


def collect(outcome: Outcome, programs: list[Checked]) -> None:
    """Read what the device has counted so far."""
    outcome.mismatches = sum(int(each.wrong) for each in programs)
    for each in programs:
        if outcome.first_mismatch is None and int(each.wrong):
            outcome.first_mismatch = each.program.describe(int(each.first))


def run(me: Rank, operations: int, minutes: float) -> Outcome:
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    cases = make_cases(me, makers(), workspace)
    programs = make_programs(cases, PROGRAMS + 1, LENGTH, rather_small, me.device)
    *graphed, eager = checked = [Checked(program, me.device) for program in programs]
    dice, own_dice = random.Random(2), random.Random(1000 + me.rank)
    pool = torch.cuda.graph_pool_handle()
    graphs = [each.capture(workspace, own_dice, pool) for each in graphed]
    eager_run, load, outcome = Eager(eager), Load(me.device), Outcome(digest=impartial_digest(cases))
    torch.cuda.synchronize()
    clock, rounds = Clock(me, minutes, operations), 0
    while outcome.operations < operations:
        if rounds % LOOK == 0:
            torch.cuda.current_stream().synchronize()
            collect(outcome, checked)
            if clock.is_over(outcome):
                break
        rounds += 1
        be_late(own_dice, outcome)
        if own_dice.random() < LOAD:
            load.move()
        which = dice.randrange(PROGRAMS)
        graphs[which].replay()
        outcome.add(graphed[which].program)
        eager_run.run(workspace, dice.randrange(MOST_EAGER + 1), outcome)
    workspace.synchronize()
    collect(outcome, checked)
    outcome.loads, outcome.seconds = load.count, clock.seconds
    return outcome


def main(arguments: list[str]) -> int:
    """Start the ranks; the exit status says whether all was right."""
    options = parse_arguments(arguments, OPERATIONS, __doc__)
    if torch.cuda.device_count() < options.ranks:
        print(f"needs {options.ranks} CUDA GPUs, and there are {torch.cuda.device_count()}")
        return 2
    start, ranks = describe_start(), ProcessRanks(options.ranks, one_gpu_per_rank)
    try:
        outcomes = ranks.run(run, options.operations, options.minutes, timeout=60 * options.minutes + 240)
    finally:
        ranks.kill()
    return report(outcomes, options, "cuda", start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
