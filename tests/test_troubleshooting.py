"""docs/troubleshooting.md quotes errors: each text is still one that the code raises or logs."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
JOINED = re.compile(r"""\\\n\s*|"\s*\n\s*f?"(?!")""")
"""Where a text goes on in the next line: in Rust behind a backslash, in Python in another literal."""


@cache
def code() -> str:
    folders = (ROOT / "python", *ROOT.glob("rust/*/src"))
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".rs")]
    assert len(files) > 100
    return "\n".join(JOINED.sub("", file.read_text()) for file in sorted(files))


def quoted() -> list[str]:
    """The texts at the left margin: terms, and what a line that explains them begins with a colon."""
    lines = PAGE.read_text().splitlines()
    terms = [line for line, after in pairwise(lines) if after.startswith(": ")]
    return [text for term in terms for text in re.findall(r"`([^`]+)`", term.partition(" [")[0])]


def is_in_code(text: str) -> bool:
    """Whether the code has the text, with a placeholder in the place of each `…`."""
    pattern = r"(?:\{[^\n]{0,60}?\}|%\w)".join(map(re.escape, text.split("…")))
    return re.search(pattern, code()) is not None


@pytest.mark.parametrize("text", quoted())
def test_a_quoted_error_is_one_of_the_code(text):
    assert is_in_code(text), f"no error has this text any more: {text}"


def test_a_text_that_no_error_has_is_found():
    assert len(quoted()) > 35
    assert not is_in_code("the ranks differ: this was never an error")
    assert not is_in_code("waited … for the moon")


def test_every_error_class_is_explained():
    page = PAGE.read_text()
    named = ("LamportTimeoutError", "LamportMismatchError", "LamportAbortedError", "LamportSizeError")
    assert [name for name in named if name not in page] == []
