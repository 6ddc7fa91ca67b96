"""The figure of a decode step: a group of bars per batch, with the part of each that is communication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lamport_rs.command_line.bench.arguments import NO_COMMUNICATION
from lamport_rs.command_line.bench.plot_style import INK, LIMIT, PALE, Style, add_title, hide_frame, ranks_of, styles_of
from lamport_rs.command_line.bench.record import Record, Row
from lamport_rs.command_line.bench.report import (
    OWN,
    by_case,
    communication_share,
    groups,
    implementations_in,
    tokens_per_second,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _PANEL_HEIGHT = 8.3, 3.5
"""In inches: 800 pixels of a page, where text is then as large as the page's."""
_GROUP = 0.86
"""The part of a batch's place that its bars take."""
_ROOM = 12
"""Bars across the figure, up to which a time in milliseconds and a share with a decimal are no wider than a bar."""


def step_figure(record: Record, op: str, rows: Sequence[Row]) -> Figure | None:
    """Return the figure, with a panel for each dtype and world size; None where only the floor was measured."""
    from matplotlib.figure import Figure

    panels = [(key, group) for key, group in groups(rows) if _implementations(group)]
    if not panels:
        return None
    styles = styles_of(_implementations(rows))
    figure = Figure(figsize=(_WIDTH, 1.0 + _PANEL_HEIGHT * len(panels)), layout="constrained")
    add_title(figure, record, op)
    column = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ((_, world_size, dtype, _), group), axes in zip(panels, column, strict=True):
        title = f"{ranks_of(record, world_size)}, {dtype}, {group[0].layers} layers of {group[0].hidden}"
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        _draw_panel(axes, group, styles)
    _add_legend(figure, rows, styles)
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    names = _implementations(rows)
    batches = sorted(by_case(rows).items(), key=lambda each: each[0].tokens or 0)
    bar = _GROUP / len(names)
    crowded = len(names) * len(batches) > _ROOM
    for place, (_, found) in enumerate(batches):
        floor = found.get(NO_COMMUNICATION)
        if floor is not None:
            _draw_floor(axes, place, _ms(floor))
        for index, name in enumerate(names):
            if name in found:
                centre = place - _GROUP / 2 + (index + 0.5) * bar
                colour = styles[name].colour
                # Without a floor the colour, which stands for communication, would cover the whole step.
                fill = "none" if floor is None else colour
                axes.bar(centre, _ms(found[name]), 0.92 * bar, facecolor=fill, edgecolor=colour, zorder=2)
                _label_bar(axes, centre, found[name], floor, crowded)
    axes.set_xlim(-0.5, len(batches) - 0.5)
    axes.set_xticks(range(len(batches)), [case.size for case, _ in batches])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("Batch (sequences)")
    axes.set_ylabel("Time per step (ms, median)")
    axes.set_ylim(0, 1.16 * max(map(_ms, rows)))
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    hide_frame(axes)


def _draw_floor(axes: Axes, place: int, ms: float) -> None:
    """Lay what the step takes without communication over the bars, so that their ends remain."""
    axes.bar(place, ms, _GROUP, color=PALE, zorder=3)
    left = place - _GROUP / 2
    ends = [left, left + _GROUP]
    axes.plot(ends, [ms, ms], color=LIMIT.colour, linestyle=LIMIT.dashes, linewidth=LIMIT.width, zorder=4)
    _write(axes, f"{ms:.2f}", place, ms, -12)


def _label_bar(axes: Axes, centre: float, row: Row, floor: Row | None, crowded: bool) -> None:
    """Write the time and communication's share over the bar, tokens per second (if crowded, the time too) upright."""
    ms = f"{_ms(row):.2f}"
    top = max(_ms(each) for each in (row, floor) if each is not None)
    weight = "bold" if row.impl == OWN else "normal"
    tokens = f"{tokens_per_second(row):.0f}/s"
    upright = f"{ms}, {tokens}" if crowded and floor is not None else tokens
    _write(axes, upright, centre, 0, 4, fontweight=weight, fontsize=8, rotation=90)
    if floor is None:
        _write(axes, ms, centre, top, 2, fontweight=weight, rotation=90 if crowded else 0)
    elif crowded:
        _write(axes, f"{communication_share(row, floor):.0%}", centre, top, 2, fontweight=weight, fontsize=8)
    else:
        _write(axes, f"{ms}\n{communication_share(row, floor):.1%}", centre, top, 2, fontweight=weight)


def _write(axes: Axes, text: str, x: float, y: float, above: float, **others: Any) -> None:
    """Write the text over a point, `above` points higher."""
    axes.annotate(
        text, (x, y), (0, above), textcoords="offset points", ha="center", va="bottom", color=INK, zorder=5, **others
    )


def _add_legend(figure: Figure, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=style.colour, label=name) for name, style in styles.items()]
    title = "Upright: tokens per second"
    if any(row.impl == NO_COMMUNICATION for row in rows):
        handles.append(Patch(color=PALE, label=NO_COMMUNICATION))
        title = f"Coloured, and in per cent: communication's share of the step. {title}"
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, title=title)


def _implementations(rows: Sequence[Row]) -> list[str]:
    """All but the floor."""
    return [name for name in implementations_in(rows) if name != NO_COMMUNICATION]


def _ms(row: Row) -> float:
    return row.median_us / 1e3
