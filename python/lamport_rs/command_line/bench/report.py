"""The tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lamport_rs.command_line.bench.arguments import (
    BACK_TO_BACK,
    COLLECTIVES,
    KERNEL_BETWEEN,
    NO_COMMUNICATION,
    NORM_BETWEEN,
    PRODUCT_BETWEEN,
    STEPS,
)
from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.findings import Missing
from lamport_rs.command_line.bench.record import Row
from lamport_rs.command_line.table import format_latency, format_table, wrap

OWN = "lamport_rs"
_RATIO = "best other / lamport_rs"
_LATENCY = "median latency in microseconds (least-most)"
_TIMING_LABELS = {
    BACK_TO_BACK: "back to back",
    KERNEL_BETWEEN: "another kernel between, its own time taken off",
    NORM_BETWEEN: "a small norm between, its own time taken off",
    PRODUCT_BETWEEN: "a product between that empties the caches, its own time taken off",
}
_MARKS = {
    "*": "*  in a shorter graph, whose start weighs more (graph_operations in the record)",
    "**": "** with the host's time: it cannot enqueue the graph ahead of the device",
}


def tables(rows: Sequence[Row], ranks: str, width: int) -> str:
    """Return a table per operation, world size, dtype and width of rows, for an output of `width` columns.

    `ranks` is what a rank is called: GPUs or processes.
    """
    return "\n\n".join(
        _step_table(f"{op}, {dtype}, {world_size} {ranks}", group, width)
        if op in STEPS
        else _table(f"{op}, {dtype}, {world_size} {ranks}{_label(op, timing, group)}: {_LATENCY}", group, width)
        for (op, world_size, dtype, timing), group in groups(rows)
    )


def timing_label(op: str, timing: str) -> str:
    """Return what a title says of the timing; nothing for what is not a collective."""
    return f", {_TIMING_LABELS[timing]}" if op in COLLECTIVES else ""


def _label(op: str, timing: str, group: Sequence[Row]) -> str:
    """What a title says besides: of rows their width, too."""
    width = group[0].hidden
    return f"{f', hidden {width}' if op in COLLECTIVES and width else ''}{timing_label(op, timing)}"


def groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, int, str, str], list[Row]]]:
    """Yield the rows that belong together, an operation after the other, and a width after the other.

    With each group its operation, world size, dtype and timing.
    """
    ops = list(dict.fromkeys(row.op for row in rows))
    found: dict[tuple[tuple[str, int, str, str], int | str | None], list[Row]] = {}
    for row in sorted(rows, key=lambda row: ops.index(row.op)):
        found.setdefault(((row.op, row.world_size, row.dtype, row.timing), row.hidden), []).append(row)
    yield from ((key, group) for (key, _), group in found.items())


def implementations_in(rows: Sequence[Row]) -> list[str]:
    """Return who was measured, in the order of the rows."""
    return list(dict.fromkeys(row.impl for row in rows))


def ratio(medians: Mapping[str, float]) -> float | None:
    """Return by how much lamport_rs is faster than the best of the others; None if either is missing."""
    others = [median for name, median in medians.items() if not name.startswith((OWN, NO_COMMUNICATION))]
    return min(others) / medians[OWN] if others and OWN in medians else None


def by_case(rows: Sequence[Row]) -> dict[Case, dict[str, Row]]:
    """Return the rows of each case by implementation, in the order of the rows."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.impl] = row
    return found


def communication_share(step: Row, floor: Row) -> float:
    """Return the part of the step that goes when the communication does; `floor` is the step without any."""
    return 1 - floor.median_us / step.median_us


def tokens_per_second(step: Row) -> float:
    """Return how many tokens all sequences of the batch get in a second."""
    return 1e6 * (step.tokens or 0) / step.median_us


def missing_text(missing: Sequence[Missing], width: int) -> str:
    """Return what could not be measured, and why, in `width` columns: an entry for all sizes that share a reason."""
    sizes: dict[Missing, list[str]] = {}
    for each in missing:
        sizes.setdefault(replace(each, size=None), []).extend([each.size] if each.size else [])
    lines = [
        "  "
        + wrap(
            f"{each.what}, {each.world_size} ranks{', at ' + ', '.join(at) if at else ''}: {each.reason}",
            width - 2,
            "    ",
        )
        for each, at in sizes.items()
    ]
    return "\n".join(["not measured:", *lines])


def _table(title: str, rows: Sequence[Row], width: int) -> str:
    names = implementations_in(rows)
    cases = by_case(rows)
    ratios = _ratios(cases)
    header = ["bytes" if rows[0].bytes is not None else "tokens", *names, *([_RATIO] if ratios else [])]
    body = []
    for case, found in cases.items():
        body.append([case.size, *(_format(found.get(name)) for name in names), *_ratio_cell(ratios, case)])
    return "\n".join([wrap(title, width), "", format_table(header, body, width), *_notes(rows, width)])


def _step_table(title: str, rows: Sequence[Row], width: int) -> str:
    """A table in milliseconds; beside each, tokens per second, and the part that goes when the communication does."""
    names = sorted(implementations_in(rows), key=lambda name: name != NO_COMMUNICATION)
    cases = by_case(rows)
    ratios = _ratios(cases)
    body = []
    for case, found in cases.items():
        floor = found.get(NO_COMMUNICATION)
        cells = [_format_step(found.get(name), floor) for name in names]
        body.append([case.size, *cells, *_ratio_cell(ratios, case)])
    figures = "median ms per step (least-most), tokens/s, communication's share"
    title += f", {rows[0].layers} layers of {rows[0].hidden}: {figures}"
    table = format_table(["batch", *names, *([_RATIO] if ratios else [])], body, width)
    return "\n".join([wrap(title, width), "", table, *_notes(rows, width)])


def _ratios(cases: Mapping[Case, Mapping[str, Row]]) -> dict[Case, float]:
    """The ratio of each case that has one. What the host has slowed down says nothing of it, and is left out."""
    found = {
        case: ratio({name: row.median_us for name, row in rows.items() if not row.host_included})
        for case, rows in cases.items()
    }
    return {case: factor for case, factor in found.items() if factor is not None}


def _ratio_cell(ratios: Mapping[Case, float], case: Case) -> list[str]:
    """The cell of the last column; none where no case has a ratio."""
    if not ratios:
        return []
    return [f"{ratios[case]:.2f}" if case in ratios else "-"]


def _notes(rows: Sequence[Row], width: int) -> list[str]:
    return [wrap(text, width, "   ") for mark, text in _MARKS.items() if any(_mark(row) == mark for row in rows)]


def _mark(row: Row) -> str:
    if row.host_included:
        return "**"
    return "*" if row.graph_operations is not None else ""


def _format(row: Row | None) -> str:
    return "-" if row is None else format_latency(row.median_us, row.min_us, row.max_us, _mark(row))


def _format_step(row: Row | None, floor: Row | None) -> str:
    if row is None:
        return "-"
    cell = format_latency(row.median_us / 1e3, row.min_us / 1e3, row.max_us / 1e3, _mark(row))
    cell = f"{cell}, {tokens_per_second(row):.0f}/s"
    return cell if floor in (None, row) else f"{cell}, {communication_share(row, floor):.1%}"
