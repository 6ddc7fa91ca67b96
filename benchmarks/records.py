"""Which of the recorded runs the pages show: the newest of each number of GPUs, all of one kind of GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from lamport_rs.command_line.bench.record import Record, read

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
SHOWN_GPU = "NVIDIA H200"


def shown(folders: Iterable[Path], sizes_of: Callable[[Record], Iterable[int]]) -> dict[int, tuple[Path, Record]]:
    """Return the records of the folders that the pages show, by the number of GPUs; `sizes_of` as for `newest`."""
    paths = (path for folder in folders for path in folder.glob("*.json") if "-soak-" not in path.name)
    of_one_kind = ((path, record) for path in paths if (record := read(path)).gpu == SHOWN_GPU)
    return newest(of_one_kind, sizes_of)


def newest(
    records: Iterable[tuple[Path, Record]], sizes_of: Callable[[Record], Iterable[int]]
) -> dict[int, tuple[Path, Record]]:
    """Return the newest record of each number of GPUs; `sizes_of` says of which a record has what is to be shown."""
    found: dict[int, tuple[Path, Record]] = {}
    for path, record in sorted(records, key=lambda each: each[1].date):
        found |= dict.fromkeys(sizes_of(record), (path, record))
    return dict(sorted(found.items()))
