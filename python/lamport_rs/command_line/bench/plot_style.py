"""What all figures have in common: colours, markers, grid, title."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamport_rs.command_line.bench.record import Record
from lamport_rs.command_line.bench.report import OWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PALE = "#222222", "#d9d9d9"
_OWN_COLOURS = {
    OWN: "#d55e00",
    f"{OWN}_one_shot": "#e69f00",
    f"{OWN}_two_shot": "#a8480a",
    f"{OWN}_unfused": "#e69f00",
}
# Okabe and Ito's, which people with any colour vision tell apart.
_OTHER_COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#5b4fa0", "#8c8c8c")
_MARKERS = ("s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Style:
    """How an implementation is drawn; bars have its colour only."""

    colour: str
    marker: str
    width: float
    dashes: str = "-"


LIMIT = Style(INK, "", 1.0, ":")
"""Of what nothing can be faster than."""


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    """Return a style for each implementation, lamport_rs's the most striking."""
    styles = {}
    others = [name for name in names if not name.startswith(OWN)]
    for name in names:
        if name == OWN:
            styles[name] = Style(_OWN_COLOURS[name], "o", 2.6)
        elif name.startswith(OWN):
            styles[name] = Style(_OWN_COLOURS.get(name, INK), "", 1.4, "--")
        else:
            index = others.index(name)
            styles[name] = Style(_OTHER_COLOURS[index % len(_OTHER_COLOURS)], _MARKERS[index % len(_MARKERS)], 1.4)
    return styles


def add_title(figure: Figure, record: Record, op: str) -> None:
    """Say above the panels what was measured, where and when."""
    note = ", interrupted" if record.interrupted else ""
    figure.suptitle(f"{op} on {record.machine}, {record.date[:10]}{note}", fontsize=11, fontweight="bold", color=INK)


def ranks_of(record: Record, world_size: int) -> str:
    """Return `"4 GPUs"`, or processes."""
    return f"{world_size} {'GPUs' if record.gpu else 'processes'}"


def hide_frame(axes: Axes) -> None:
    """Leave the two axes of the frame, behind the data."""
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
