"""Tables and text for terminals of any width."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

_UNLIMITED = 1 << 20
_GAP = 2


def output_width() -> int:
    """Return the columns of the terminal; where the output is none, those of `COLUMNS`, or more than any line takes."""
    return shutil.get_terminal_size((_UNLIMITED, 24)).columns


def wrap(text: str, width: int, indent: str = "") -> str:
    """Return the text in lines of at most `width`; all but the first begin with `indent`. Words are not broken."""
    lines = textwrap.wrap(
        text, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def format_table(header: Sequence[str], body: Sequence[Sequence[str]], width: int) -> str:
    """Return the lines of a table, columns to the right.

    Columns that do not fit into `width` follow below, beside the first column again. A single one that is wider than
    that stays whole.
    """
    rows = [header, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    blocks: list[list[int]] = []
    room = 0
    for column in range(1, len(header)):
        room -= _GAP + widths[column]
        if not blocks or room < 0:
            blocks.append([0])
            room = width - widths[0] - _GAP - widths[column]
        blocks[-1].append(column)
    return "\n\n".join(
        "\n".join((" " * _GAP).join(row[column].rjust(widths[column]) for column in block) for row in rows)
        for block in blocks
    )


def format_latency(median_us: float, min_us: float, max_us: float, mark: str = "") -> str:
    """Return the median, a mark, and the extremes, as `"1.46* (1.40-2.10)"`."""
    return f"{_format_us(median_us)}{mark} ({_format_us(min_us)}-{_format_us(max_us)})"


def _format_us(microseconds: float) -> str:
    """Three or four figures, as many as a latency is worth."""
    return f"{microseconds:.2f}" if microseconds < 100 else f"{microseconds:.0f}"
