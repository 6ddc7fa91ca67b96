"""Limits of the operating system: errors call them by their name, on every rank, and nothing is left behind."""

import contextlib
import errno
import logging
import os
import resource

import lamport_rs
import torch
from lamport_rs import LamportAbortedError, LamportError
from ranks import Rank, errors_of_survivors
from system_calls import PIDFD_OPEN, let_fail

MOST_FREE = 12
"""With so many descriptors a construction succeeds."""


def create_and_sum(me: Rank) -> str:
    """What becomes of a workspace: `right`, or the text of its error."""
    try:
        with me.workspace(1 << 16) as workspace:
            total = lamport_rs.all_reduce(torch.full((8,), 1.0 + me.rank), workspace)
            assert bool((total == sum(range(1, me.world_size + 1))).all())
    except LamportError as error:
        return str(error)
    return "right"


def create_with_few_descriptors(me: Rank) -> list[str]:
    """Rank 1 has no descriptor left, then one, then two, and so on."""
    # What is imported or opened once is there from now on.
    texts = [create_and_sum(me)]
    held: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = sorted(int(each) for each in os.listdir("/proc/self/fd"))
    if me.rank == 1:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1] + MOST_FREE + 2, hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(opened[0]))
    try:
        for _ in range(MOST_FREE + 1):
            texts.append(create_and_sum(me))
            if held:
                os.close(held.pop())
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return [*texts, create_and_sum(me)]


def test_few_descriptors_are_called_by_their_name(new_ranks):
    """Whatever the construction wants them for, on all ranks alike."""
    first, *others = new_ranks(3).run(create_with_few_descriptors)
    assert others == [first, first]
    assert first[0] == first[-2] == first[-1] == "right"
    refused = [text for text in first if text != "right"]
    assert len(refused) >= 4
    assert first[1 : 1 + len(refused)] == refused, "more descriptors are no worse"
    for text in refused:
        assert text.startswith("rank 1: "), text
        assert "Too many open files" in text, text
        assert "all the file descriptors that it may have (limit " in text, text
        assert "ulimit -n" in text, text
    assert len({text.partition(":")[2].partition("failed")[0] for text in refused}) >= 3, "at several steps"


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def create_twice_unwatched(me: Rank) -> list[str]:
    """Rank 0 cannot watch its peers' processes."""
    if me.rank == 0:
        let_fail(PIDFD_OPEN, errno.EMFILE)
    warnings = _Warnings()
    logging.getLogger("lamport_rs").addHandler(warnings)
    assert [create_and_sum(me) for _ in range(2)] == ["right"] * 2
    logging.getLogger("lamport_rs").removeHandler(warnings)
    return warnings.texts


def test_a_rank_that_cannot_watch_its_peers_says_so_once(new_ranks):
    texts, *others = new_ranks(3).run(create_twice_unwatched)
    assert others == [[], []]
    assert len(texts) == 1
    assert "may be noticed by the timeout only: pidfd_open failed: Too many open files" in texts[0]
    assert "ulimit -n" in texts[0]


unwatched: list[lamport_rs.LamportWorkspace] = []


def create_unwatched(me: Rank) -> None:
    """No rank can watch its peers' processes."""
    let_fail(PIDFD_OPEN, errno.ENOSYS)
    unwatched.append(me.workspace(1 << 16, timeout=30))


def reduce_until_an_error(me: Rank) -> None:
    while True:
        lamport_rs.all_reduce(torch.ones(1000), unwatched[-1])


def test_without_pidfds_a_killed_rank_is_noticed_by_its_word(new_ranks):
    ranks = new_ranks(2)
    ranks.run(create_unwatched)
    (error,) = errors_of_survivors(ranks, reduce_until_an_error, 5)
    assert isinstance(error, LamportAbortedError)
    assert (error.rank, error.cause) == (1, "ended")
