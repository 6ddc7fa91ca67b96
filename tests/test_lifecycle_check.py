"""`LamportWorkspace.check`, which a program calls after each step."""

import logging
import pydoc
import timeit
import weakref
from collections.abc import Callable
from pathlib import Path

import lamport_rs
import pytest
import torch
import torch._dynamo  # Once it is imported, most of the package's functions take the compiler's way.
from lamport_rs import LamportAbortedError, LamportError, LamportWorkspace


def alone() -> LamportWorkspace:
    return LamportWorkspace(0, 1, 4096, device="cpu")


class Plain:
    """What a call costs that does nothing."""

    def check(self) -> None:
        """Do so."""


def fastest(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=2000, repeat=50))


@pytest.mark.alone
def test_a_check_costs_a_few_calls_that_do_nothing_also_when_the_compiler_is_imported():
    """It takes twice as long as such a call; with a frame of the interpreter's own it takes more than six times."""
    plain, workspace = Plain(), alone()
    assert fastest(workspace.check) < 4 * fastest(plain.check)


def test_a_check_says_what_it_does():
    text = pydoc.plain(pydoc.render_doc(alone().check))
    assert "Waits for nothing" in text
    assert "LamportAbortedError: If a rank has aborted" in text
    assert LamportWorkspace.check.__doc__.startswith("Raise what went wrong")


def test_a_fault_that_a_check_raises_is_in_the_log(caplog):
    workspace = alone()
    workspace.abort("enough")
    with caplog.at_level(logging.ERROR, "lamport_rs"), pytest.raises(LamportAbortedError, match="enough"):
        workspace.check()
    assert ["enough" in record.message for record in caplog.records] == [True]


def test_a_check_of_what_was_cleaned_up_says_so_whoever_has_held_on_to_it():
    workspace = alone()
    check = workspace.check
    workspace.cleanup()
    for each in (check, workspace.check):
        with pytest.raises(LamportError, match="this workspace was cleaned up; create a new one on every rank"):
            each()


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:lamport-rs")


def test_a_check_keeps_no_memory_and_no_workspace():
    before = mappings()
    workspace = alone()
    seen, check = weakref.ref(workspace), workspace.check
    assert mappings() > before
    workspace.cleanup()
    assert mappings() == before
    # No cycle: whoever lets go last frees it.
    del workspace, check
    assert seen() is None


class Counting(LamportWorkspace):
    """Does more in its check."""

    checks = 0

    def check(self) -> None:
        """Count, too."""
        self.checks += 1
        super().check()


@pytest.mark.parametrize("kind", [LamportWorkspace, Counting])
def test_a_subclass_and_a_compiled_function_may_check(kind):
    workspace = kind(0, 1, 4096, device="cpu")

    def step(x):
        total = lamport_rs.all_reduce(x + 1, workspace)
        workspace.check()
        return total * 2

    compiled = torch.compile(step, backend="eager")
    for _ in range(2):
        assert compiled(torch.ones(4)).tolist() == [4.0] * 4
    workspace.abort("enough")
    with pytest.raises(LamportAbortedError, match="enough"):
        compiled(torch.ones(4))
    with pytest.raises(LamportAbortedError, match="enough"):
        workspace.check()
    if kind is Counting:
        assert workspace.checks == 3
