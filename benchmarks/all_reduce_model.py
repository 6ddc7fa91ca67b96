"""What an all-reduce takes: a model, and its fit to recorded runs. docs/appendix/scaling.md describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from lamport_rs import LamportError
from lamport_rs.command_line.bench.arguments import BACK_TO_BACK
from lamport_rs.command_line.bench.record import Record

Algorithm = Literal["one_shot", "two_shot"]
ALGORITHMS: tuple[Algorithm, ...] = ("one_shot", "two_shot")
WAYS: dict[Algorithm, int] = {"one_shot": 1, "two_shot": 2}
OWN = "lamport_rs"

VECTOR_BYTES, WARP_THREADS = 16, 32
MULTIPROCESSORS = 132
"""Of an H100 or H200."""

# What rust/kernels/src says; tests/test_cost_model.py compares.
MEASURED_TWO_SHOT_FROM = {2: 2375 << 10, 3: 296 << 10, 4: 160 << 10}
WAY_BYTES = 222_000
ONE_SHOT_WORKERS = 128
RESIDENT_THREADS: dict[Algorithm, dict[int, int]] = {
    "one_shot": {2: 1536, 4: 1024, 8: 512, 16: 256},
    "two_shot": {2: 2048, 4: 1024, 8: 512, 16: 256},
}
"""Threads that a multiprocessor holds at once, by the group size that a kernel is compiled for."""


@dataclass(frozen=True)
class Point:
    """A measured all-reduce."""

    world_size: int
    bytes: int
    algorithm: Algorithm
    impl: str
    median_us: float


@dataclass(frozen=True)
class Model:
    """T = launch + turns * (way + spread * log2(warps)) + bytes over the link / bandwidth."""

    launch_us: float
    way_us: float
    spread_us: float
    bandwidth_gb_per_s: float

    def latency_us(self, world_size: int, size: int, algorithm: Algorithm) -> float:
        """Return the microseconds of an all-reduce of `size` bytes."""
        launch, turns, spread, traffic = factors(world_size, size, algorithm)
        return (
            launch * self.launch_us + turns * self.way_us + spread * self.spread_us + traffic / self.bandwidth_gb_per_s
        )

    def best(self, world_size: int, size: int) -> Algorithm:
        """Return the faster algorithm; one-shot if they are equal."""
        return min(ALGORITHMS, key=lambda algorithm: self.latency_us(world_size, size, algorithm))

    def crossover(self, world_size: int, largest: int = 64 << 20) -> int | None:
        """Return the bytes from which two-shot is first faster, to 1 %; None if it is not up to `largest`."""
        return next((size for size in size_grid(largest) if self.best(world_size, size) == "two_shot"), None)

    def loss(self, world_size: int, largest: int = 8 << 20) -> tuple[float, int]:
        """Return by how much the launch plan's choice is slower than the better one at most, and at how many bytes."""
        losses = []
        for size in size_grid(largest):
            chosen, best = automatic(world_size, size), self.best(world_size, size)
            ratio = self.latency_us(world_size, size, chosen) / self.latency_us(world_size, size, best)
            losses.append((ratio - 1, size))
        return max(losses)


@dataclass(frozen=True)
class Fit:
    """A model, and what it rests on."""

    model: Model
    errors: Model
    """Standard error of each parameter."""
    points: tuple[Point, ...]

    def residuals(self) -> list[float]:
        """Return model / measured - 1 for every point."""
        return residuals(self.model, self.points)


def two_shot_from(world_size: int) -> int:
    """Return the bytes from which the launch plan chooses two-shot."""
    if world_size in MEASURED_TWO_SHOT_FROM:
        return MEASURED_TWO_SHOT_FROM[world_size]
    return WAY_BYTES * world_size // ((world_size - 1) * (world_size - 2))


def automatic(world_size: int, size: int) -> Algorithm:
    """Return the algorithm that the launch plan chooses."""
    return "two_shot" if size >= two_shot_from(world_size) else "one_shot"


def bytes_over_link(world_size: int, size: int, algorithm: Algorithm) -> float:
    """Return the bytes that each GPU pushes."""
    peers = world_size - 1
    return peers * size if algorithm == "one_shot" else 2 * peers / world_size * size


def vectors_summed(world_size: int, size: int, algorithm: Algorithm) -> int:
    """Return the 16-byte vectors that a rank sums, each in a thread of its own."""
    vectors = math.ceil(size / VECTOR_BYTES)
    return vectors if algorithm == "one_shot" else math.ceil(vectors / world_size)


def turns(world_size: int, size: int, algorithm: Algorithm) -> int:
    """Return how often a thread waits for its peers: the ways, times the vectors that it has one after the other."""
    capacity = min(each for each in RESIDENT_THREADS[algorithm] if each >= world_size)
    threads = RESIDENT_THREADS[algorithm][capacity]
    if algorithm == "one_shot":  # A warp of every block has no vectors.
        threads = threads // (ONE_SHOT_WORKERS + WARP_THREADS) * ONE_SHOT_WORKERS
    rounds = math.ceil(vectors_summed(world_size, size, algorithm) / (threads * MULTIPROCESSORS))
    return WAYS[algorithm] * rounds


def factors(world_size: int, size: int, algorithm: Algorithm) -> tuple[float, float, float, float]:
    """Return what the model multiplies launch, way, spread and 1 / bandwidth with."""
    warps = math.ceil(vectors_summed(world_size, size, algorithm) / WARP_THREADS)
    waits = turns(world_size, size, algorithm)
    # GB/s are 1e3 bytes per microsecond.
    traffic = bytes_over_link(world_size, size, algorithm) / 1e3
    return 1.0, waits, waits * math.log2(min(warps, MULTIPROCESSORS)), traffic


def size_grid(largest: int) -> list[int]:
    """Return sizes from 512 bytes to `largest`, each some 1 % more than the one before, in whole vectors."""
    steps = range(math.ceil(math.log(largest / 512) / math.log(1.01)))
    return sorted({round(512 * 1.01**step / VECTOR_BYTES) * VECTOR_BYTES for step in steps} | {largest})


def points_of(records: Sequence[Record]) -> tuple[Point, ...]:
    """Return the all-reduces by lamport_rs on GPUs, back to back.

    Of the automatic ones the launch plan says the algorithm.
    """
    points = []
    for record in records:
        for row in record.rows if record.gpu else ():
            if row.op != "all_reduce" or row.bytes is None or row.timing != BACK_TO_BACK:
                continue
            known: dict[str, Algorithm] = {f"{OWN}_{algorithm}": algorithm for algorithm in ALGORITHMS}
            known[OWN] = automatic(row.world_size, row.bytes)
            if row.impl in known:
                points.append(Point(row.world_size, row.bytes, known[row.impl], row.impl, row.median_us))
    return tuple(points)


def fit(points: Sequence[Point]) -> Fit:
    """Return the least squares of the relative errors."""
    rows = np.array([factors(point.world_size, point.bytes, point.algorithm) for point in points]).reshape(-1, 4)
    relative = rows / np.array([[point.median_us] for point in points]).reshape(-1, 1)
    ones = np.ones(len(points))
    solution, _, rank, _ = np.linalg.lstsq(relative, ones, rcond=None)
    if rank < len(solution) or len({point.algorithm for point in points}) < 2:
        raise LamportError(
            f"{len(points)} rows of all_reduce by {OWN} on GPUs do not determine the model: it needs both algorithms "
            "at several sizes"
        )
    if solution[3] <= 0:
        raise LamportError("the fit gives no positive bandwidth: the rows hold no message that takes the link long")
    variance = float(np.sum((relative @ solution - ones) ** 2)) / max(len(points) - len(solution), 1)
    deviation = [float(value) for value in np.sqrt(variance * np.diag(np.linalg.inv(relative.T @ relative)))]
    launch, way, spread, per_gigabyte = (float(value) for value in solution)
    return Fit(
        model=Model(launch, way, spread, 1 / per_gigabyte),
        errors=Model(deviation[0], deviation[1], deviation[2], deviation[3] / per_gigabyte**2),
        points=tuple(points),
    )


def residuals(model: Model, points: Sequence[Point]) -> list[float]:
    """Return model / measured - 1 for every point."""
    return [model.latency_us(point.world_size, point.bytes, point.algorithm) / point.median_us - 1 for point in points]


def world_sizes(points: Sequence[Point]) -> list[int]:
    """Return the group sizes that were measured."""
    return sorted({point.world_size for point in points})


def rms(values: Sequence[float]) -> float:
    """Return the root of the mean of the squares."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def held_out(points: Sequence[Point]) -> tuple[int, list[float]] | None:
    """Return the largest group and its residuals under a fit to the smaller ones; None if there is one size only."""
    *smaller, largest = world_sizes(points)
    if not smaller:
        return None
    model = fit([point for point in points if point.world_size != largest]).model
    return largest, residuals(model, [point for point in points if point.world_size == largest])
