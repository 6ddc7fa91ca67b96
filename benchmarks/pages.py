"""Tables of Markdown, and the parts of a page that a command writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lamport_rs import LamportError


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rewrite(page: Path, parts: Mapping[str, str]) -> None:
    """Put each part between its markers on the page, `<!-- name -->` and `<!-- /name -->`."""
    text = page.read_text()
    for name, part in parts.items():
        opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(opening)
        _, closed, after = rest.partition(closing)
        if not found or not closed:
            raise LamportError(f"{page} must have the lines {opening.strip()} and {closing}, and lacks one")
        text = f"{before}{opening}{part}\n{closing}{after}"
    page.write_text(text)
