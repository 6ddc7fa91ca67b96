"""Where each operation has a place, every one has: docs/adding_an_operation.md says what goes there."""

from __future__ import annotations

import re

import pytest
from documents import ROOT
from lamport_rs import _core, operations
from test_for_group import KEYWORDS

OPERATIONS = sorted(name for name, *_ in _core.collectives())


def test_the_registry_has_every_operation():
    assert sorted(operations.__all__) == OPERATIONS
    assert sorted(collective.name for collective, _ in operations.COLLECTIVES) == OPERATIONS


@pytest.mark.parametrize("page", ["CHANGELOG.md", "docs/index.md", "docs/api.md", "docs/measuring.md"])
def test_a_page_that_lists_operations_has_every_one(page):
    text = (ROOT / page).read_text()
    if page != "CHANGELOG.md":
        text = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert [name for name in OPERATIONS if f"`{name}`" not in text] == []


def test_ranks_that_call_different_operations_are_tried_with_every_one():
    text = (ROOT / "tests" / "mismatches.py").read_text()
    assert [name for name in OPERATIONS if f"lamport_rs.{name}(" not in text] == []


def test_supports_and_prepare_are_asked_about_every_operation():
    assert sorted({name for name, *_ in KEYWORDS}) == OPERATIONS


@pytest.mark.parametrize("folder", ["tests", "tests/gpu"])
def test_every_operation_has_tests_on_both_backends(folder):
    text = "\n".join(file.read_text() for file in (ROOT / folder).glob("*.py") if file.name != "soak_gpu.py")
    assert [name for name in OPERATIONS if not re.search(rf"\b{name}\b", text)] == []


def kinds_of_a_soak(name: str) -> set[str]:
    (makers,) = re.findall(r"^def makers.*?^    \)$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    return set(re.findall(r"\((\w+), ", makers))


def test_the_soak_on_gpus_has_what_that_on_the_host_has():
    """tests/test_soak_run.py sees that the latter has every operation."""
    on_the_host, on_gpus = (kinds_of_a_soak(name) for name in ("tests/soak_host.py", "tests/gpu/soak_gpu.py"))
    assert on_the_host == on_gpus
    assert len(on_gpus) > 5
