"""How a soak is asked for, how far it is, and the record of what came of it."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lamport_rs.command_line.bench.record import describe_run
from ranks import Rank
from soak_programs import Program

PROGRESS_SECONDS = 10.0
NOT_OF_A_SOAK = {"schema", "method", "rows", "link_gb_per_s", "peers"}
"""Keys of a bench's record."""


@dataclass
class Outcome:
    """What one rank did and found."""

    operations: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    delays: int = 0
    loads: int = 0
    """Pieces of other work that was done at the same time."""
    mismatches: int = 0
    """Words of results that were not the expected ones."""
    first_mismatch: str | None = None
    seconds: float = 0.0
    digest: str = ""

    def add(self, program: Program, times: int = 1) -> None:
        """Count a program that has run."""
        self.operations += times * len(program.steps)
        for counts, more in ((self.kinds, program.kinds), (self.dtypes, program.dtypes)):
            for key, number in more.items():
                counts[key] += times * number


class Clock:
    """When the time is over, on all ranks at once, and when to say how far it is."""

    def __init__(self, me: Rank, minutes: float, wanted: int) -> None:
        self._rank, self._wanted = me.rank, wanted
        self._start = self._said = time.monotonic()
        self._end = self._start + 60 * minutes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def is_over(self, outcome: Outcome) -> bool:
        """Whether any rank's time is over. A collective call."""
        now = time.monotonic()
        if self._rank == 0 and now - self._said >= PROGRESS_SECONDS:
            self._said = now
            done = f"{outcome.operations:,} of {self._wanted:,} operations"
            print(f"{self.seconds:6.0f} s: {done}, {outcome.mismatches} mismatches", flush=True)
        over = torch.tensor([now >= self._end])
        dist.all_reduce(over, op=dist.ReduceOp.MAX)
        return bool(over)


def parse_arguments(arguments: list[str], operations: int, description: str) -> argparse.Namespace:
    """What to run, for how long, and where to write what came of it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--operations", type=int, default=operations, help="default: %(default)s")
    parser.add_argument("--ranks", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=10.0, help="stops earlier then; default: %(default)s")
    parser.add_argument("--out", type=Path, help="writes the record there, as JSON")
    return parser.parse_args(arguments)


def describe_start() -> dict[str, Any]:
    """When, where and at which commit it was started, by the names that a bench's record has for that."""
    run = asdict(describe_run([], "", "host"))
    return {key: value for key, value in run.items() if key not in NOT_OF_A_SOAK}


def report(outcomes: list[Outcome], arguments: argparse.Namespace, backend: str, where: dict[str, Any]) -> int:
    """Print and write the record. The exit status: 0 if everything was run and every result was right."""
    if backend == "cuda":
        where |= {"gpu": torch.cuda.get_device_name(0), "gpus": arguments.ranks}
    first = outcomes[0]
    complete = first.operations >= arguments.operations
    record = {
        **where,
        "backend": backend,
        "ranks": arguments.ranks,
        "operations": first.operations,
        "complete": complete,
        "mismatches": sum(each.mismatches for each in outcomes),
        "first_mismatches": [each.first_mismatch for each in outcomes],
        "same_bits_on_all_ranks": len({each.digest for each in outcomes}) == 1,
        "kinds": dict(sorted(first.kinds.items())),
        "dtypes": dict(sorted(first.dtypes.items())),
        "delays": sum(each.delays for each in outcomes),
        "loads": sum(each.loads for each in outcomes),
        "seconds": round(max(each.seconds for each in outcomes), 1),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    return 0 if complete and not record["mismatches"] and record["same_bits_on_all_ranks"] else 1
