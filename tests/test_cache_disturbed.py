"""get_allreduce_workspace where something comes between: wrong arguments, signals, forks."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

import pytest
from lamport_rs import LamportError, cache, clear_workspace_cache, get_allreduce_workspace
from ranks import Rank, ThreadRanks
from test_cache import _empty_cache as _empty_cache
from test_cache import check_table


def test_a_wrong_argument_of_a_later_call_is_this_ranks_own_error():
    """The other ranks have their workspace, and need not be in this call."""
    ranks = ThreadRanks(2)
    groups, asked = [ranks.member(rank).group for rank in range(2)], []

    def counted(rank: int):
        return lambda message: asked.append(rank) or groups[rank](message)

    gathers = [counted(rank) for rank in range(2)]
    ranks.run(lambda me: get_allreduce_workspace(me.rank, 2, 4096, process_group=gathers[me.rank]))
    asked.clear()
    for changes in ({"comm_size": "much"}, {"max_tokens": None, "comm_size": None}, {"device": []}):
        with pytest.raises(LamportError):
            get_allreduce_workspace(
                **{"rank": 0, "world_size": 2, "comm_size": 4096, **changes}, process_group=gathers[0]
            )
    assert not asked


def test_the_cache_may_be_used_from_within_a_creation():
    """By a signal's handler, say, which runs in the thread that is creating."""
    ranks, errors = ThreadRanks(2), []

    class Group:
        def __init__(self, rank: int) -> None:
            self.rank, self.is_first = rank, True

        def __call__(self, message: bytes) -> list[bytes]:
            if self.is_first:
                self.is_first = False
                clear_workspace_cache()
                with pytest.raises(LamportError) as caught:
                    get_allreduce_workspace(self.rank, 2, 4096, process_group=self.refuse)
                errors.append(str(caught.value))
            return ranks.all_gather(self.rank, message)

        def refuse(self, message: bytes) -> list[bytes]:
            raise ConnectionError("the wire is cut")

    groups = [Group(rank) for rank in range(2)]
    ranks.run(lambda me: check_table(me, get_allreduce_workspace(me.rank, 2, 4096, process_group=groups[me.rank])))
    assert len(errors) == 2
    assert all("the wire is cut" in error for error in errors)


def test_a_workspace_is_not_waited_for_by_the_thread_that_creates_it():
    ranks, errors = ThreadRanks(2), []

    class Group:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __call__(self, message: bytes) -> list[bytes]:
            with pytest.raises(LamportError, match="while the same thread is creating it") as caught:
                get_allreduce_workspace(self.rank, 2, 4096, process_group=self)
            errors.append(caught.value)
            return ranks.all_gather(self.rank, message)

    groups = [Group(rank) for rank in range(2)]
    ranks.run(lambda me: check_table(me, get_allreduce_workspace(me.rank, 2, 4096, process_group=groups[me.rank])))
    assert errors


class _Stop(BaseException):
    """What a signal's handler raises."""


# Some come to destructors, which cannot pass them on.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_a_cache_that_works(monkeypatch):
    """Signals that come while creations fail: whatever line they come to, nothing stays that would be waited for."""
    stops = []

    def refuse(message: bytes) -> list[bytes]:
        raise ConnectionError

    def stop(_number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code.co_filename != cache.__file__:
            frame = frame.f_back
        if frame is not None:
            stops.append(frame.f_lineno)
            raise _Stop

    # Python ignores what is raised in a finaliser, and pytest would fail for it.
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: None)
    # A timer, and no thread: that would run, and send, where this one lets it.
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    try:
        for _ in range(100_000):
            with contextlib.suppress(LamportError, _Stop):
                get_allreduce_workspace(0, 2, 4096, process_group=refuse)
            if len(stops) >= 300:
                break
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert len(set(stops)) > 3, "the signals came to few lines"
    cleared = threading.Thread(target=clear_workspace_cache)
    cleared.start()
    cleared.join(20)
    assert not cleared.is_alive(), "an interrupted creation is waited for"
    with pytest.raises(LamportError, match="ConnectionError"):
        get_allreduce_workspace(0, 2, 4096, process_group=refuse)


def create_in_a_forked_process(me: Rank) -> int:
    """The exit code of a process forked from each rank, whose workspaces are its own."""
    table = get_allreduce_workspace(me.rank, me.world_size, 4096, process_group=me.group)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ranks = ThreadRanks(2)
            ranks.run(lambda own: check_table(own, get_allreduce_workspace(own.rank, 2, 4096, process_group=own.group)))
            with pytest.raises(LamportError, match="belongs to process"):
                check_table(me, table)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    check_table(me, get_allreduce_workspace(me.rank, me.world_size, 4096, process_group=me.group))
    clear_workspace_cache()
    return os.waitstatus_to_exitcode(status)


def test_a_forked_process_starts_with_an_empty_cache(new_ranks):
    assert new_ranks(2).run(create_in_a_forked_process) == [0, 0]


FREED_BY_TORCH = """
import torch
from lamport_rs import LamportWorkspace

workspace = LamportWorkspace(0, 1, 4096, device="cpu")
held = [workspace.workspace]
workspace.cleanup()


def all_gather(message):
    held.clear()  # The last reference. Torch frees a tensor without the interpreter's lock.
    return [message]


LamportWorkspace(0, 1, 4096, all_gather, device="cpu").cleanup()
print("right")
"""


@pytest.mark.long
def test_a_table_may_be_freed_by_torch_within_a_call_of_the_package():
    """In a process of its own, which a mistake would end."""
    done = subprocess.run([sys.executable, "-c", FREED_BY_TORCH], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
