"""The fenced blocks of the README and of docs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page."""

    page: str
    """Relative to the repository."""
    line: int
    """Of its first line of code, from 1 on."""
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: str, text: str) -> list[Block]:
    found = []
    for block in FENCE.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        found.append(Block(page, line, block[1], block[2]))
    return found


def blocks(*languages: str) -> list[Block]:
    """The blocks in one of the languages; all without any."""
    found = [each for page in pages() for each in blocks_of(str(page.relative_to(ROOT)), page.read_text())]
    return [each for each in found if not languages or each.language in languages]
