"""The tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.findings import Missing
from lamport_rs.command_line.bench.record import Row
from lamport_rs.command_line.table import format_latency, format_table, wrap

OWN = "lamport_rs"
_RATIO = "best other / lamport_rs"
_MARKS = {
    "*": "*  in a shorter graph, whose start weighs more (graph_operations in the record)",
    "**": "** with the host's time: it cannot enqueue the graph ahead of the device",
}


def tables(rows: Sequence[Row], ranks: str, width: int) -> str:
    """Return a table per operation, world size and dtype, for an output of `width` columns.

    `ranks` is what a rank is called: GPUs or processes.
    """
    return "\n\n".join(
        _table(f"{op}, {dtype}, {world_size} {ranks}: median latency in microseconds (least-most)", group, width)
        for (op, world_size, dtype), group in groups(rows)
    )


def groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, int, str], list[Row]]]:
    """Yield the rows that belong together, an operation after the other: operation, world size and dtype, and rows."""
    ops = list(dict.fromkeys(row.op for row in rows))
    found: dict[tuple[str, int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: ops.index(row.op)):
        found.setdefault((row.op, row.world_size, row.dtype), []).append(row)
    yield from found.items()


def implementations_in(rows: Sequence[Row]) -> list[str]:
    """Return who was measured, in the order of the rows."""
    return list(dict.fromkeys(row.impl for row in rows))


def ratio(medians: Mapping[str, float]) -> float | None:
    """Return by how much lamport_rs is faster than the best of the others; None if either is missing."""
    others = [median for name, median in medians.items() if not name.startswith(OWN)]
    return min(others) / medians[OWN] if others and OWN in medians else None


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
    by_case: dict[Case, dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault(row.case, {})[row.impl] = row
    # What the host has slowed down says nothing of how much faster lamport_rs is.
    ratios = {
        case: ratio({row.impl: row.median_us for row in found.values() if not row.host_included})
        for case, found in by_case.items()
    }
    compared = any(factor is not None for factor in ratios.values())
    header = ["bytes" if rows[0].bytes is not None else "tokens", *names, *([_RATIO] if compared else [])]
    body = []
    for case, found in by_case.items():
        factor = ratios[case]
        cells = [case.size, *(_format(found.get(name)) for name in names)]
        body.append([*cells, *(["-" if factor is None else f"{factor:.2f}"] if compared else [])])
    notes = [wrap(text, width, "   ") for mark, text in _MARKS.items() if any(_mark(row) == mark for row in rows)]
    return "\n".join([wrap(title, width), "", format_table(header, body, width), *notes])


def _mark(row: Row) -> str:
    if row.host_included:
        return "**"
    return "*" if row.graph_operations is not None else ""


def _format(row: Row | None) -> str:
    return "-" if row is None else format_latency(row.median_us, row.min_us, row.max_us, _mark(row))
