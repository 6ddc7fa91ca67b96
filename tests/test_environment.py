"""docs/environment.md has every environment variable of the project, and no other."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SOURCES = ("python", "rust", "kernels", "benchmarks", "scripts", "tests", ".ci", "Makefile")
KINDS = {".py", ".pyi", ".rs", ".cu", ".cuh", ".h", ".sh", ".toml", ""}
VARIABLE = re.compile(r"\bLAMPORT_RS_[A-Z0-9_]*[A-Z0-9]\b")


def sources() -> list[Path]:
    found = [PROJECT / name for name in SOURCES]
    files = [file for each in found for file in ([each] if each.is_file() else each.rglob("*")) if file.is_file()]
    return [file for file in files if file.suffix in KINDS and file != Path(__file__)]


def test_every_variable_is_in_the_table_and_every_line_of_it_is_a_variable():
    used = {name for file in sources() for name in VARIABLE.findall(file.read_text())}
    assert {"LAMPORT_RS_CHECK", "LAMPORT_RS_COMMIT", "LAMPORT_RS_FUZZ_SEED"} <= used
    table = (PROJECT / "docs" / "environment.md").read_text()
    assert set(re.findall(r"^\| `(LAMPORT_RS_\w+)` \|", table, re.MULTILINE)) == used
