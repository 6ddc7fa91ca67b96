"""What the command's arguments mean here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamport_rs import LamportError
from lamport_rs._core import MAX_WORLD_SIZE
from lamport_rs.command_line.bench.arguments import (
    BACK_TO_BACK,
    COLLECTIVES,
    COSTS,
    DEFAULT_OPERATIONS,
    DEFAULT_TIMINGS,
    STEPS,
    TIME_LIMIT,
    TIMINGS,
)
from lamport_rs.command_line.bench.cases import SIZES, Case, cases_of
from lamport_rs.command_line.launch import choose_backend

_GPU_WORLD_SIZES = (2, 4)
_HOST_WORLD_SIZES = (2,)


@dataclass(frozen=True)
class Options:
    """What to measure, and what to leave."""

    backend: str
    """`"cuda"` or `"host"`."""
    world_sizes: tuple[int, ...]
    operations: tuple[str, ...] = DEFAULT_OPERATIONS
    implementations: tuple[str, ...] | None = None
    """None for all."""
    sizes: tuple[int, ...] = SIZES
    tokens: tuple[int, ...] | None = None
    """None for those that suit each operation."""
    layers: int | None = None
    """Of the model that `STEPS` are of; None for what suits the backend."""
    timings: tuple[str, ...] = (BACK_TO_BACK,)
    """Of `TIMINGS`, those that collectives are measured by."""
    replays: int | None = None
    time_limit: float = TIME_LIMIT
    """Seconds for each world size; ranks that take longer are ended."""
    folder: Path | None = None
    """Where the record and the figures go; None to leave neither."""
    plot: bool = True

    @property
    def compared(self) -> list[str]:
        """The operations that implementations are compared by."""
        return [op for op in COLLECTIVES + STEPS if op in self.operations]

    @property
    def costs(self) -> list[str]:
        """What is measured around the kernels. On the host a call is the operation, and has no time of its own."""
        return [cost for cost in COSTS if cost in self.operations and (self.backend, cost) != ("host", "host_time")]

    @property
    def ranks(self) -> str:
        """What ranks are called."""
        return "GPUs" if self.backend == "cuda" else "processes"

    @property
    def samples(self) -> int:
        """Graph replays per figure, or rounds on the host."""
        return self.replays or (30 if self.backend == "cuda" else 5)

    def cases_of(self, op: str) -> list[Case]:
        """Return the operation's cases."""
        return cases_of(op, self.backend, self.sizes, self.tokens, self.layers)

    def timings_of(self, op: str) -> tuple[str, ...]:
        """Return how the operation is timed. A step has kernels between its collectives of itself."""
        return (BACK_TO_BACK,) if op in STEPS else self.timings

    def wants(self, implementation: str) -> bool:
        """Whether the implementation is to be measured."""
        return self.implementations is None or implementation in self.implementations


def options_from(arguments: argparse.Namespace, default_folder: Path) -> Options:
    """Return the options that the arguments mean here; raise `LamportError` if they cannot be met."""
    backend, gpus = choose_backend(arguments.backend)
    defaults = [n for n in _GPU_WORLD_SIZES if n <= gpus] if backend == "cuda" else _HOST_WORLD_SIZES
    options = Options(
        backend,
        world_sizes=tuple(sorted(set(arguments.world_sizes or defaults))),
        operations=tuple(arguments.operations or DEFAULT_OPERATIONS),
        implementations=tuple(arguments.implementations) if arguments.implementations else None,
        sizes=tuple(sorted(set(arguments.sizes or SIZES))),
        tokens=tuple(sorted(set(arguments.tokens))) if arguments.tokens else None,
        layers=arguments.layers,
        timings=_timings(arguments.timing, backend),
        replays=arguments.replays,
        time_limit=arguments.time_limit,
        folder=None if arguments.no_record else arguments.record or default_folder,
        plot=not arguments.no_plot,
    )
    most = min(gpus, MAX_WORLD_SIZE) if backend == "cuda" else MAX_WORLD_SIZE
    if not options.world_sizes or options.world_sizes[0] < 2 or options.world_sizes[-1] > most:
        raise LamportError(f"--world-sizes {list(options.world_sizes)} cannot be had: 2 to {most} ranks can run here")
    if not options.compared and not options.costs:
        raise LamportError("--operations host_time is measured on GPUs: on the host a call is the whole operation")
    return options


def _timings(asked: Sequence[str] | None, backend: str) -> tuple[str, ...]:
    if backend == "cuda":
        return tuple(timing for timing in TIMINGS if timing in (asked or DEFAULT_TIMINGS))
    if others := [timing for timing in asked or () if timing != BACK_TO_BACK]:
        raise LamportError(
            f"--timing {others[0]} is measured on GPUs: on the host nothing is launched ahead, and a call takes as "
            "long whatever stands before it"
        )
    return (BACK_TO_BACK,)
