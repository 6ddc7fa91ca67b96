"""Fits the all-reduce's cost model to recorded runs, and says what it predicts for larger groups.

`python benchmarks/cost_model.py [RECORD ...]` prints the tables of docs/appendix/scaling.md, `--write` rewrites them
and draws the figure. Without records it takes those of benchmarks/results and its folder `peers` that `records.py`
chooses.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import all_reduce_model as model
from all_reduce_model import ALGORITHMS, OWN, Algorithm, Fit, Model
from lamport_rs import LamportError, LamportWorkspace
from lamport_rs.command_line.bench.arguments import format_bytes
from lamport_rs.command_line.bench.cases import SIZES
from lamport_rs.command_line.bench.record import Record, read
from pages import markdown, rewrite
from records import RESULTS, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "appendix" / "scaling.md"
PREDICTED = (8, 16)
"""Groups that are not measured."""
MEMORY_SIZES = (256 << 10, 1 << 20, 8 << 20)
SLOTS, HEADER_BYTES, GRANULARITY = 3, 64, 2 << 20
# Okabe and Ito's, which people with any colour vision tell apart.
COLOURS = {2: "#0072b2", 4: "#d55e00", 8: "#009e73", 16: "#cc79a7"}
INK = "#222222"


def tables(fitted: Fit, records: Mapping[Path, Record]) -> dict[str, str]:
    """Return the generated parts of the page, by name; `records` are those that were fitted, by their files."""
    return {
        "fit": fit_text(fitted, records),
        "residuals": residual_table(fitted),
        "crossover": crossover_table(fitted),
        "predictions": prediction_table(fitted.model),
        "memory": memory_table(),
    }


def fit_text(fitted: Fit, records: Mapping[Path, Record]) -> str:
    """Return what was fitted to what, and how well."""
    runs = ", ".join(f"{name_of(path)} ({provenance(path, record)})" for path, record in records.items())
    found, errors = fitted.model, fitted.errors
    rows = [
        ("launch, µs", found.launch_us, errors.launch_us, 2),
        ("way, µs", found.way_us, errors.way_us, 2),
        ("spread, µs per doubling of the warps", found.spread_us, errors.spread_us, 3),
        ("bandwidth, GB/s", found.bandwidth_gb_per_s, errors.bandwidth_gb_per_s, 0),
    ]
    body = [[name, f"{value:.{digits}f}", f"{error:.{digits}f}"] for name, value, error, digits in rows]
    misses = fitted.residuals()
    counts = " and ".join(map(str, model.world_sizes(fitted.points)))
    quality = [
        f"Fitted to {len(misses)} rows at {counts} GPUs, of {runs}.",
        f"The model misses a row by {model.rms(misses):.1%} (root mean square), the worst by {largest(misses):.1%}.",
    ]
    tested = model.held_out(fitted.points)
    if tested is None:
        quality.append(
            f"**There are rows at {counts} GPUs only: how the time depends on the number of GPUs is assumed here, and "
            "tested by nothing.**"
        )
    else:
        world_size, there = tested
        quality.append(
            f"A fit to the smaller groups alone misses the rows at {world_size} GPUs by {model.rms(there):.1%}, the "
            f"worst by {largest(there):.1%}."
        )
    return "\n\n".join([markdown(["term", "fit", "standard error"], body), "\n".join(quality)])


def name_of(path: Path) -> str:
    """Return the record's name in benchmarks/results, its folder included."""
    found = path.resolve().with_suffix("")
    return str(found.relative_to(RESULTS)) if found.is_relative_to(RESULTS) else found.name


def provenance(path: Path, record: Record) -> str:
    """Return what was measured, and a warning where nobody else can look it up."""
    commit = f"commit {(record.commit or 'unknown')[:7]}"
    return commit if path.resolve().is_relative_to(RESULTS) else f"{commit}, not in benchmarks/results"


def largest(misses: Sequence[float]) -> float:
    """Return the size of the largest."""
    return max(map(abs, misses))


def residual_table(fitted: Fit) -> str:
    """Return every measured row, and by how much the model misses it."""
    impls = [f"{OWN}_{algorithm}" for algorithm in ALGORITHMS] + [OWN]
    cells: dict[tuple[int, int], dict[str, list[str]]] = {}
    for point, miss in zip(fitted.points, fitted.residuals(), strict=True):
        cell = f"{point.median_us:.2f} ({miss:+.1%})"
        cells.setdefault((point.world_size, point.bytes), {}).setdefault(point.impl, []).append(cell)
    body = [
        [str(world_size), format_bytes(size), *(", ".join(found.get(impl, ["-"])) for impl in impls)]
        for (world_size, size), found in sorted(cells.items())
    ]
    return markdown(["GPUs", "bytes", "one-shot, µs", "two-shot, µs", "automatic, µs"], body)


def crossover_table(fitted: Fit) -> str:
    """Return from which size two-shot is faster, what the launch plan says, and what its choice loses."""
    body = []
    for world_size in groups(fitted):
        crossover = fitted.model.crossover(world_size)
        loss, at = fitted.model.loss(world_size)
        body.append(
            [
                str(world_size),
                "never" if crossover is None else kibibytes(crossover),
                kibibytes(model.two_shot_from(world_size)),
                f"{loss:.0%} at {kibibytes(at)}" if loss >= 0.005 else "0%",
            ]
        )
    return markdown(["GPUs", "two-shot faster from, by the fit", "`two_shot_from`", "most that its choice loses"], body)


def groups(fitted: Fit) -> list[int]:
    """Return the group sizes of the crossovers and the figure: those measured, 4, and those predicted."""
    return sorted({*model.world_sizes(fitted.points), 4, *PREDICTED})


def prediction_table(found: Model) -> str:
    """Return the model's latencies for groups that are not measured, the faster algorithm's in bold."""
    body = []
    for size in SIZES:
        row = [format_bytes(size)]
        for world_size in PREDICTED:
            for algorithm in ALGORITHMS:
                text = f"{found.latency_us(world_size, size, algorithm):.1f}"
                row.append(f"**{text}**" if algorithm == found.best(world_size, size) else text)
        body.append(row)
    header = [f"{world_size}, {name}" for world_size in PREDICTED for name in ("one-shot", "two-shot")]
    return markdown(["bytes", *header], body)


def memory_table() -> str:
    """Return the memory of a workspace per rank, in MiB."""
    body = []
    for size in MEMORY_SIZES:
        for world_size in (2, 4, *PREDICTED):
            any_algorithm = LamportWorkspace.compute_comm_size_for_all_reduce(size, world_size)
            two_shot = world_size * two_shot_region_bytes(world_size, size)
            memory = [block_bytes(any_algorithm, world_size), block_bytes(two_shot, world_size)]
            cells = [f"{each / (1 << 20):.1f}" for each in (*memory, flashinfer_bytes(world_size, size))]
            body.append([format_bytes(size), str(world_size), *cells])
    return markdown(["largest message", "GPUs", "any algorithm", "two-shot at that size", "FlashInfer"], body)


def two_shot_region_bytes(world_size: int, size: int) -> int:
    """Return the bytes of a region for two-shot: contributions and sums of a shard."""
    return 2 * model.vectors_summed(world_size, size, "two_shot") * model.VECTOR_BYTES


def block_bytes(comm_size: int, world_size: int) -> int:
    """Return what a rank allocates: three slots, each with a header for every rank, in whole blocks of 2 MiB."""
    used = SLOTS * (comm_size + world_size * HEADER_BYTES)
    return math.ceil(used / GRANULARITY) * GRANULARITY


def flashinfer_bytes(world_size: int, size: int) -> int:
    """Return what FlashInfer's workspace takes per rank for 16-bit messages: buffer, flags, three Lamport buffers."""
    return world_size * size + world_size * 256 * 4 + 3 * world_size * size


def kibibytes(size: int) -> str:
    """Return `"73 Ki"`: a size that is not round, to the precision it is worth."""
    return f"{size / 1024:.0f} Ki"


def draw(fitted: Fit, path: Path) -> None:
    """Draw the measured latencies and the model's; dashed where nothing was measured. Needs matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for algorithm, axes in zip(ALGORITHMS, panels, strict=True):
            draw_algorithm(axes, fitted, algorithm)
        panels[0].set_ylabel("latency (µs)")
        panels[0].legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})


def draw_algorithm(axes: Axes, fitted: Fit, algorithm: Algorithm) -> None:
    """Draw the lines of all group sizes, and the points of those that were measured."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    measured = model.world_sizes(fitted.points)
    sizes = model.size_grid(max(SIZES))
    for world_size in groups(fitted):
        known, colour = world_size in measured, COLOURS.get(world_size, INK)
        latencies = [fitted.model.latency_us(world_size, size, algorithm) for size in sizes]
        label = f"{world_size} GPUs, {'model' if known else 'predicted'}"
        axes.plot(sizes, latencies, color=colour, linestyle="-" if known else "--", label=label)
        points = [each for each in fitted.points if (each.world_size, each.algorithm) == (world_size, algorithm)]
        if points:
            at, medians = [each.bytes for each in points], [each.median_us for each in points]
            axes.plot(at, medians, color=colour, marker="o", linestyle="", label=f"{world_size} GPUs, measured")
    axes.set(title=algorithm.replace("_", "-"), xlabel="message (bytes)", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [format_bytes(size) for size in SIZES], rotation=45)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#d9d9d9", linewidth=0.6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Fit the all-reduce's cost model to recorded runs.")
    parser.add_argument("records", nargs="*", type=Path, metavar="RECORD", help="default: as records.py chooses")
    parser.add_argument("--write", action="store_true", help="rewrite the page's tables, and its figure beside it")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/appendix/scaling.md")
    options = parser.parse_args(arguments)
    try:
        records = {path: read(path) for path in options.records} or recorded()
        used = {path: record for path, record in records.items() if model.points_of([record])}
        fitted = model.fit(model.points_of(list(used.values())))
        found = tables(fitted, used)
        print("\n\n".join(found.values()))
        if options.write:
            rewrite(options.page, found)
            draw(fitted, options.page.with_suffix(".svg"))
    except LamportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return 1
    return 0


def recorded(folder: Path = RESULTS) -> dict[Path, Record]:
    """Return the records with all-reduces that the pages show, those with peers among them."""
    found = shown([folder, folder / "peers"], lambda record: model.world_sizes(model.points_of([record])))
    return dict(found.values())


if __name__ == "__main__":
    sys.exit(main())
