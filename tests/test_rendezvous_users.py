"""Ranks that the kernel does not let look into each other: the error says which rule that is, and what to do."""

import ctypes
import os

import pytest
from ranks import Rank
from test_system_limits import create_and_sum

NOBODY = 65534
_SET_DUMPABLE = 4

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")


def create_as_nobody(me: Rank, ranks: tuple[int, ...], dumpable: bool) -> list[str]:
    """These ranks give up root."""
    texts = [create_and_sum(me)]
    if me.rank in ranks:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        if dumpable:
            ctypes.CDLL(None).prctl(_SET_DUMPABLE, 1, 0, 0, 0)
    return [*texts, create_and_sum(me)]


def outcome(ranks, givers: tuple[int, ...], dumpable: bool) -> str:
    """What all ranks got after some had given up root."""
    first, *others = ranks.run(create_as_nobody, givers, dumpable)
    assert others == [first] * len(others)
    assert first[0] == "right"
    return first[1]


@needs_root
def test_ranks_that_have_given_up_root_are_told_what_to_call(new_ranks):
    text = outcome(new_ranks(2), (0, 1), dumpable=False)
    assert "is not dumpable" in text
    assert "prctl(PR_SET_DUMPABLE, 1)" in text
    assert "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)" in text
    assert "same user" not in text, "they are"


@needs_root
def test_the_advice_for_ranks_that_have_given_up_root_is_right(new_ranks):
    assert outcome(new_ranks(2), (0, 1), dumpable=True) == "right"


@needs_root
def test_ranks_of_different_users_are_told_who_runs_as_whom(new_ranks):
    text = outcome(new_ranks(2), (1,), dumpable=True)
    assert "rank 1: cannot map the memory of rank 0" in text
    assert (
        f"runs as user 0 and group 0, this one as user {NOBODY} and group {NOBODY}; run all ranks as one user" in text
    )
