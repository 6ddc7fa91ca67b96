"""Two builds of the package, measured in turns: whether a change made anything slower.

    python benchmarks/compare_builds.py before.whl after.whl
    python benchmarks/compare_builds.py before.whl after.whl --starts 5 --within 1 -- --operations all_reduce

A build is a wheel, or a folder that has the package. What follows `--` goes to `lamport-rs bench`. Each build is
started `--starts` times, in turns, as figures of one process differ from those of the next by more than its own samples
do. The program prints each row of the bench: the median of each build's starts, in microseconds, and how many times as
long the second build takes. The exit status is 1 if that is beyond `--within` percent for any row, or if a build lacks
a row. `--out` leaves all figures in a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Key: TypeAlias = tuple[object, ...]
"""What a row of the bench measures."""

MEASURES = ("op", "impl", "world_size", "dtype", "bytes", "tokens", "hidden", "layers", "timing")
"""The keys of a row that say what it measures."""
DEFAULTS = ("--implementations", "lamport_rs")
"""What the bench is told, unless it is told something."""


@dataclass(frozen=True)
class Comparison:
    """A row of the bench: the microseconds of each start of the build before, and of that after."""

    key: Key
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        """How many times as long the build after takes, by the medians; None if one has no figure."""
        if not self.before or not self.after:
            return None
        return statistics.median(self.after) / statistics.median(self.before)

    def is_within(self, percent: float) -> bool:
        """Whether both are there, and the build after takes at most so much longer."""
        return self.ratio is not None and self.ratio <= 1 + percent / 100

    @property
    def name(self) -> str:
        """What is measured, in a word or two."""
        return " ".join(str(part) for part in self.key if part is not None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record; return the exit status."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        places = [
            installed(build, Path(folder, name))
            for name, build in (("before", options.before), ("after", options.after))
        ]
        figures: list[dict[Key, list[float]]] = [{}, {}]
        for start in range(options.starts):
            # Which is first alternates, as a machine that warms up would favour one.
            for at in (0, 1) if start % 2 == 0 else (1, 0):
                print(f"start {start + 1} of {options.starts}: {('before', 'after')[at]}", file=sys.stderr, flush=True)
                for key, microseconds in rows_of(run_bench(places[at], options.bench)):
                    figures[at].setdefault(key, []).append(microseconds)
    comparisons = compare(*figures)
    print(table(comparisons, options.within))
    if options.out:
        options.out.write_text(json.dumps(recorded(options, comparisons), indent=1) + "\n")
    return 0 if comparisons and all(each.is_within(options.within) for each in comparisons) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words[: words.index("--")] if "--" in words else words
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--within", type=float, default=1.0, metavar="PERCENT")
    parser.add_argument("--out", type=Path)
    parser.usage = "%(prog)s BEFORE AFTER [options] [-- BENCH OPTIONS]"
    options = parser.parse_args(own)
    if options.starts < 1:
        parser.error("--starts is 1 or more")
    options.bench = [*DEFAULTS, *words[len(own) + 1 :]]
    return options


def installed(build: Path, folder: Path) -> Path:
    """Return a folder for PYTHONPATH that has the build's package."""
    if build.is_dir():
        return build.resolve()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(build.resolve())], check=True)
    return folder


def run_bench(place: Path, options: Sequence[str]) -> dict[str, Any]:
    """Run the bench of the package in `place`, and return its record."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lamport_rs", "bench", "--no-plot", "--record", folder, *options]
        # Not from a checkout, whose package would come first.
        subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(place)}, stdout=subprocess.DEVNULL, check=True
        )
        (path,) = Path(folder).glob("*.json")
        record: dict[str, Any] = json.loads(path.read_text())
        return record


def rows_of(record: dict[str, Any]) -> list[tuple[Key, float]]:
    """Return what each row measures, and its median."""
    return [(tuple(row.get(name) for name in MEASURES), row["median_us"]) for row in record["rows"]]


def compare(before: dict[Key, list[float]], after: dict[Key, list[float]]) -> list[Comparison]:
    """Return each row of either build, in the bench's order."""
    keys = dict.fromkeys([*before, *after])
    return [Comparison(key, tuple(before.get(key, ())), tuple(after.get(key, ()))) for key in keys]


def table(comparisons: Sequence[Comparison], within: float) -> str:
    """Return the rows as a table of Markdown; those beyond the bound are bold."""
    lines = ["| | before, µs | after, µs | after / before |", "| --- | --- | --- | --- |"]
    for each in comparisons:
        ratio = "not measured" if each.ratio is None else f"{each.ratio:.3f}"
        shown = ratio if each.is_within(within) else f"**{ratio}**"
        lines.append(f"| {each.name} | {spread(each.before)} | {spread(each.after)} | {shown} |")
    return "\n".join(lines)


def spread(figures: Sequence[float]) -> str:
    """Return the median, and the extremes if there are several."""
    if not figures:
        return "-"
    median = f"{statistics.median(figures):.3f}"
    return median if len(figures) == 1 else f"{median} ({min(figures):.3f} to {max(figures):.3f})"


def recorded(options: argparse.Namespace, comparisons: Sequence[Comparison]) -> dict[str, object]:
    """Return what a file has of the run."""
    rows = [
        {
            **dict(zip(MEASURES, each.key, strict=True)),
            "before_us": each.before,
            "after_us": each.after,
            "ratio": each.ratio,
        }
        for each in comparisons
    ]
    builds = {"before": options.before.name, "after": options.after.name}
    return {**builds, "starts": options.starts, "within_percent": options.within, "bench": options.bench, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
