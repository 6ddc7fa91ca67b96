"""Ten million operations between processes over shared memory, every result compared bit for bit:

    python tests/soak_host.py --out benchmarks/results/2026-01-02-soak-cpu-x2.json

Sizes, dtypes, operations and algorithms are mixed; ranks are late at random; another thread of each moves memory. It
takes some minutes on two cores that have nothing else to do.
"""

from __future__ import annotations

import random
import sys
import threading
import time

import torch
from minimax_rows import Operation
from moe_reductions import FinalisedNorm, FinalisedReduction
from ranks import ProcessRanks, Rank
from reductions import LayerNormedReduction, NormedReduction, QuantisedReduction, QuantisedSum, Reduction, comm_size_for
from soak_programs import POISON, Case, Maker, impartial_digest, make_cases, make_makers, make_programs
from soak_report import Clock, Outcome, describe_start, parse_arguments, report

OPERATIONS = 10_000_000
PROGRAMS, LENGTH = 48, 250
MOST_BYTES = 1 << 18
LOOK = 40
"""Programs between two looks at the clock."""
LATE, LATE_SECONDS = 0.15, 0.002
"""How often a rank is late within a program, and by how much at most."""
LOAD_BYTES, LOAD_PAUSE = 16 << 20, 0.2

SUMS = [
    *[(0, "auto"), (1, "auto"), (5, "two_shot"), (64, "one_shot"), (250, "two_shot"), (1000, "auto")],
    *[(2048, "one_shot"), (3001, "two_shot"), (9000, "auto"), (65_536, "one_shot"), (65_536, "two_shot")],
]
NORMS = [(1, 8), (1, 1024), (3, 256), (7, 64), (16, 512), (40, 1024)]
QUANTISED = [
    *[(1, 8, "auto", "fp8_token"), (7, 64, "auto", "fp8_token"), (16, 512, "auto", "fp8_token")],
    *[(1, 1024, "auto", "fp8_group"), (3, 256, "auto", "fp8_group"), (40, 1024, "auto", "fp8_group")],
    *[(1, 64, "auto", "mxfp8"), (7, 512, "auto", "mxfp8"), (33, 96, "auto", "mxfp8")],
    *[(1, 64, "auto", "nvfp4"), (7, 512, "auto", "nvfp4"), (33, 96, "auto", "nvfp4")],
]
MINIMAX = [
    *[(1, (64,)), (1, (768,)), (5, (32,)), (33, (128,)), (150, (64,))],
    *[(1, (64, 16)), (2, (384, 64)), (9, (32, 8)), (64, (96, 32)), (130, (24, 8))],
]


def makers() -> list[Maker]:
    """Of all kinds; the norms as the workspace chooses."""
    return make_makers(
        (Reduction, SUMS),
        (NormedReduction, [(*shape, "auto") for shape in NORMS]),
        (QuantisedReduction, QUANTISED),
        (QuantisedSum, QUANTISED),
        (LayerNormedReduction, [(*shape, "auto") for shape in NORMS]),
        (FinalisedReduction, NORMS),
        (FinalisedNorm, NORMS),
        (Operation, MINIMAX),
    )


def rather_small(case: Case) -> float:
    """How often a case is taken: large ones so rarely that they take a third of the time."""
    return 1 / (1024 + case.bytes)


class Load:
    """A thread that moves memory now and then."""

    def __init__(self) -> None:
        self.count, self._stop = 0, threading.Event()
        self._source, self._target = torch.zeros(LOAD_BYTES // 4), torch.zeros(LOAD_BYTES // 4)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(LOAD_PAUSE):
            self._target.copy_(self._source)
            self.count += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def run(me: Rank, operations: int, minutes: float) -> Outcome:
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    cases = make_cases(me, makers(), workspace)
    programs = make_programs(cases, PROGRAMS, LENGTH, rather_small, me.device)
    dice, own_dice = random.Random(2), random.Random(1000 + me.rank)
    outcome, clock, rounds = Outcome(digest=impartial_digest(cases)), Clock(me, minutes, operations), 0
    with Load() as load:
        while outcome.operations < operations and (rounds % LOOK or not clock.is_over(outcome)):
            rounds += 1
            program = dice.choice(programs)
            late = own_dice.randrange(LENGTH) if own_dice.random() < LATE else LENGTH
            for step in program.steps[:late]:
                step(workspace)
            if late < LENGTH:
                outcome.delays += 1
                time.sleep(own_dice.uniform(0, LATE_SECONDS))
            for step in program.steps[late:]:
                step(workspace)
            if not torch.equal(program.words, program.expected):
                wrong = (program.words != program.expected).nonzero().flatten()
                outcome.mismatches += len(wrong)
                outcome.first_mismatch = outcome.first_mismatch or program.describe(int(wrong[0]))
            program.words.fill_(POISON)
            outcome.add(program)
        outcome.loads, outcome.seconds = load.count, clock.seconds
    return outcome


def main(arguments: list[str]) -> int:
    """Start the ranks; the exit status says whether all was right."""
    options = parse_arguments(arguments, OPERATIONS, __doc__)
    start, ranks = describe_start(), ProcessRanks(options.ranks)
    try:
        outcomes = ranks.run(run, options.operations, options.minutes, timeout=60 * options.minutes + 120)
    finally:
        ranks.kill()
    return report(outcomes, options, "host", start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
