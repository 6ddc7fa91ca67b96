"""The figures, one file per operation: latency and bandwidth against size, and the times of a decode step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lamport_rs.command_line.bench.arguments import COLLECTIVES, STEPS, format_bytes
from lamport_rs.command_line.bench.cases import Case, message_bytes
from lamport_rs.command_line.bench.link import floor_us
from lamport_rs.command_line.bench.plot_steps import step_figure
from lamport_rs.command_line.bench.plot_style import INK, LIMIT, PALE, Style, add_title, hide_frame, ranks_of, styles_of
from lamport_rs.command_line.bench.record import Record, Row
from lamport_rs.command_line.bench.report import OWN, groups, implementations_in, timing_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL_GAP = 0.062
"""Between two labels, as a part of the panel's height."""
_LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
"""From a label to the end of its line."""


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw `<record's stem>-<operation>.png` and `.svg` for every operation that a figure can show.

    That is a decode step, and a collective that was measured at several sizes.
    Raises ImportError where matplotlib is missing.
    """
    import matplotlib as mpl

    paths = []
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": record.stem}):
        for op in COLLECTIVES + STEPS:
            rows = [row for row in record.rows if row.op == op]
            figure = (step_figure if op in STEPS else _figure)(record, op, rows)
            if figure is None:
                continue
            for suffix in ("png", "svg"):
                path = folder / f"{record.stem}-{op}.{suffix}"
                figure.savefig(path, dpi=160, metadata={"Date": None} if suffix == "svg" else None)
                paths.append(path)
    return paths


def _figure(record: Record, op: str, rows: Sequence[Row]) -> Figure | None:
    """The operation's figure, with a pair of panels for each dtype and world size of several sizes; None without."""
    from matplotlib.figure import Figure

    panels = [(key, group) for key, group in groups(rows) if len({row.case for row in group}) > 1]
    if not panels:
        return None
    styles = styles_of(implementations_in(rows))
    figure = Figure(figsize=(10.5, 0.7 + 3.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    add_title(figure, record, op)
    for ((_, world_size, dtype, timing), group), (latency, throughput) in zip(panels, axes, strict=True):
        title = f"{ranks_of(record, world_size)}, {dtype}{timing_label(op, timing)}"
        latency.set_title(title, loc="left", fontsize=9.5, color=INK)
        _draw_latency(latency, group, styles, record.link_gb_per_s)
        _draw_throughput(throughput, group, styles, record.link_gb_per_s)
    return figure


def _draw_latency(axes: Axes, rows: Sequence[Row], styles: dict[str, Style], link: float | None) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    for name in implementations_in(rows):
        mine = _rows_by(name, rows)
        _line(axes, [_size(row.case) for row in mine], [row.median_us for row in mine], styles[name])
    floor = _floor(rows, link)
    if floor:
        _line(axes, [size for size, _, _ in floor], [us for _, _, us in floor], LIMIT)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # A floor of nanoseconds would squeeze everything else.
    axes.set_ylim(bottom=0.6 * min(row.median_us for row in rows))
    axes.set_ylabel("latency (µs, median)")
    _decorate(axes, rows)


def _draw_throughput(axes: Axes, rows: Sequence[Row], styles: dict[str, Style], link: float | None) -> None:
    unit, scale = _throughput_unit(rows[0].case)
    ends = []
    for name in implementations_in(rows):
        mine = _rows_by(name, rows)
        values = [_amount(row.case) / row.median_us * scale for row in mine]
        _line(axes, [_size(row.case) for row in mine], values, styles[name])
        ends.append((name, _size(mine[-1].case), values[-1], styles[name]))
    floor = _floor(rows, link)
    if floor:
        limit = floor[-1][1] / floor[-1][2] * scale
        axes.axhline(limit, color=LIMIT.colour, linewidth=LIMIT.width, linestyle=LIMIT.dashes)
        ends.append((f"link's limit, {limit:.0f} {unit}", max(_size(row.case) for row in rows), limit, LIMIT))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{'bandwidth' if unit == 'GB/s' else 'throughput'} ({unit})")
    _decorate(axes, rows)
    _label_ends(axes, ends)


def _line(axes: Axes, sizes: Sequence[int], values: Sequence[float], style: Style) -> None:
    own = style.width > 2
    axes.plot(
        sizes,
        values,
        color=style.colour,
        marker=style.marker,
        markersize=5.5 if own else 4,
        linewidth=style.width,
        linestyle=style.dashes,
        zorder=4 if own else 3,
    )


def _decorate(axes: Axes, rows: Sequence[Row]) -> None:
    sizes = sorted({_size(row.case) for row in rows})
    axes.set_xscale("log", base=2)
    in_bytes = rows[0].bytes is not None
    format_size = format_bytes if in_bytes else str
    labelled = _far_apart(sizes)
    axes.set_xticks(sizes, [format_size(size) if size in labelled else "" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("message (bytes)" if in_bytes else f"tokens (hidden size {rows[0].hidden})")
    axes.grid(color=PALE, linewidth=0.6)
    hide_frame(axes)


def _far_apart(sizes: Sequence[int]) -> set[int]:
    """Those whose labels do not touch on a logarithmic axis, the largest among them."""
    gap = (sizes[-1] / sizes[0]) ** (1 / 9)
    kept: list[int] = []
    for size in reversed(sizes):
        if not kept or kept[-1] >= gap * size:
            kept.append(size)
    return set(kept)


def _label_ends(axes: Axes, ends: Sequence[tuple[str, int, float, Style]]) -> None:
    """Name the lines at their right ends, moved apart where they would meet."""
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for _, _, value, _ in ends], _LABEL_GAP)
    for (name, size, value, style), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            xy=(size, value),
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=style.colour,
            fontsize=9,
            fontweight="bold" if name == OWN else "normal",
            va="center",
            arrowprops=None if style is LIMIT else {**_LEADER, "color": style.colour},
        )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Return the positions moved apart to `gap` or more, in their order, from the lowest up, and within 0 and 1."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    ceiling = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _rows_by(name: str, rows: Sequence[Row]) -> list[Row]:
    """An implementation's rows, by size."""
    return sorted((row for row in rows if row.impl == name), key=lambda row: _size(row.case))


def _size(case: Case) -> int:
    """What the horizontal axis shows."""
    return case.bytes if case.bytes is not None else case.tokens or 0


def _amount(case: Case) -> int:
    """What is done in the latency: bytes that are summed, or tokens where the sum is not of their vectors."""
    return message_bytes(case) or case.tokens or 0


def _throughput_unit(case: Case) -> tuple[str, float]:
    """The unit of the right-hand panel, and how many of it an amount per microsecond is."""
    return ("GB/s", 1e-3) if message_bytes(case) else ("million tokens/s", 1.0)


def _floor(rows: Sequence[Row], link: float | None) -> list[tuple[int, int, float]]:
    """Size, message and floor of the latency by the link, per size; nothing where no link or message is known."""
    sizes = {_size(row.case): message_bytes(row.case) for row in rows}
    return [
        (size, message, floor_us(message, rows[0].world_size, link))
        for size, message in sorted(sizes.items())
        if message and link
    ]
