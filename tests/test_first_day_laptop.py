"""The shell blocks of the README and of docs, in order, on a machine without GPUs; what none runs is named, and why."""

from __future__ import annotations

import pytest
from documents import Block
from first_day import NEEDS_GPUS, NOT_RUN, Newcomer, checked, lines_of, shown_after
from lamport_rs import operations
from shell_blocks import SHELL

pytestmark = pytest.mark.timeout(900)

QUICK_START = [each for each in SHELL if each.page == "docs/quick_start.md"]
OTHERS = [each for each in SHELL if each not in QUICK_START]
ON_THE_QUICK_START = {line for block in QUICK_START for line in lines_of(block)}
LEFT_OUT = {*NOT_RUN, *NEEDS_GPUS, *ON_THE_QUICK_START}
"""Of pages that are read after the quick start."""


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Newcomer:
    """Who has followed the quick start."""
    newcomer = Newcomer.arrive(tmp_path_factory.mktemp("first_day"), CUDA_VISIBLE_DEVICES="")
    within = "."
    for block in QUICK_START:
        printed = newcomer.run_block(block, within, set())
        if "lamport-rs demo" in lines_of(block):
            assert checked(printed) == sorted(operations.__all__)
        # A block that changes the folder changes it for those after it.
        within = next((line.removeprefix("cd ") for line in lines_of(block) if line.startswith("cd ")), within)
    return newcomer


@pytest.mark.long
def test_the_quick_start_runs_line_by_line_in_a_new_environment(newcomer):
    assert shown_after(QUICK_START[-1])
    found = newcomer.run(["python -c 'import lamport_rs; print(lamport_rs.__file__)'"]).strip()
    assert found.startswith(str(newcomer.folder / "environment"))


@pytest.mark.long
@pytest.mark.parametrize(
    "block", [each for each in OTHERS if not LEFT_OUT.issuperset(lines_of(each))], ids=lambda block: block.name
)
def test_a_block_of_another_page_runs_in_the_checkout(block, newcomer):
    newcomer.run_block(block, "lamport-rs", LEFT_OUT)


def test_lines_that_are_not_run_are_on_a_page():
    there = {line for block in SHELL for line in lines_of(block)}
    assert {*NOT_RUN, *NEEDS_GPUS} - there == set()


def test_what_a_page_shows_right_behind_a_block_is_told_from_what_comes_later():
    block = QUICK_START[-1]
    assert shown_after(block) == [
        "rank 0: sum 3.0, with residual 4.0, norm 0.5",
        "rank 1: sum 3.0, with residual 4.0, norm 0.5",
    ]
    assert shown_after(QUICK_START[0]) is None


def test_comments_and_continued_lines():
    block = Block("page.md", 1, "sh", "# All of it.\nfirst --option \\\n  more  # why\n\nsecond\n")
    assert lines_of(block) == ["first --option    more", "second"]
