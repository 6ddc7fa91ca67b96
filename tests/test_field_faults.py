"""docs/appendix/field_faults.md names tests: each exists, and each fault has one or is said to have none yet."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "appendix" / "field_faults.md", ROOT / "docs" / "foreign_kernels.md"]
NAMED = re.compile(r"`((?:tests|rust|benchmarks|scripts)/[\w/]+\.(?:py|rs|sh))(?:::(\w+))?`")
NOT_YET = "not covered yet"
HEADS = ("| fault |", "| --- |")


def defines(path: Path, name: str) -> bool:
    keyword = "def" if path.suffix == ".py" else "fn"
    return re.search(rf"^\s*(?:async )?{keyword} {name}\b", path.read_text(), re.MULTILINE) is not None


def missing(page: str) -> list[str]:
    """The files and functions a page names that do not exist."""
    named = [(ROOT / path, path, name) for path, name in NAMED.findall(page)]
    return [f"{path}::{name}" for file, path, name in named if not file.is_file() or (name and not defines(file, name))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page):
    assert missing(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_test_is_named_without_its_path(page):
    spans = re.findall(r"`([\w./:]+)`", page.read_text())
    named = [span for span in spans if re.search(r"\btest_", span)]
    assert [span for span in named if not span.startswith(("tests/", "rust/"))] == []


def test_a_name_without_a_test_is_found():
    text = "`tests/test_field_faults.py::test_nothing`, `tests/test_gone.py`, `rust/core/src/lib.rs::no_such_function`"
    assert len(missing(text)) == 3
    assert missing("`tests/test_field_faults.py::test_nothing_needs_multicast`, `tests/gpu/foreign_race.py`") == []


def test_every_fault_has_a_test_or_is_said_to_have_none():
    lines = [line for line in PAGES[0].read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if not line.startswith(HEADS)]
    # As many as there were: a row that goes is a fault that nobody looks for any more.
    assert len(rows) >= 33
    for fault, test, planted in rows:
        told = NAMED.search(test) or NOT_YET in test.lower() or "as the next row" in test
        assert told, f"{fault}: neither a test nor that there is none"
        assert planted or NOT_YET in test.lower(), f"{fault}: no planted defect, nor why there is none"


def test_nothing_needs_multicast():
    sources = [*(ROOT / "kernels").rglob("*.cu*"), *(ROOT / "rust").rglob("*.rs")]
    assert len(sources) > 50
    found = [path.name for path in sources if re.search(r"multimem\.|[mM]ulticast", path.read_text())]
    assert found == []
