"""However a rank's process ends, its peers hear of it at once: in `check` and in an operation that waits.

The test is rank 0, and a process that it starts is rank 1. This file is that process's program, too.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import lamport_rs
import pytest
import torch
from lamport_rs import LamportAbortedError, LamportError, LamportWorkspace

SOON = 2.0
"""Seconds by which the peers have heard of it on a machine that is busy."""
PAUSE = 0.3
"""Seconds after which rank 1 ends, when rank 0 waits."""
LONG = 20
"""Seconds for which something goes on that nobody should wait for."""


def workspaces_over(connection: Connection, rank: int) -> list[LamportWorkspace]:
    """Two of both ranks, which have worked."""

    def all_gather(message: bytes) -> list[bytes]:
        connection.send_bytes(message)
        theirs = connection.recv_bytes()
        return [message, theirs] if rank == 0 else [theirs, message]

    workspaces = [LamportWorkspace(rank, 2, 4096, all_gather, device="cpu", timeout=60) for _ in range(2)]
    for workspace in workspaces:
        lamport_rs.all_reduce(torch.ones(8), workspace)
    return workspaces


def check_for_a_while(workspace: LamportWorkspace) -> None:
    """Longer than the time between two looks for peers' processes, which begins with the first."""
    for _ in range(4):
        workspace.check()
        time.sleep(0.06)


def end_by_an_exception() -> None:
    raise RuntimeError("the process ends")


def end_by_sys_exit() -> None:
    sys.exit(3)


def end_in_the_end() -> None:
    """Nothing follows."""


def end_by_os_exit() -> None:
    os._exit(3)


def end_by_a_signal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end_by_abort() -> None:
    os.abort()


def end_by_exec() -> None:
    os.execv("/bin/sleep", ["sleep", str(LONG)])


ORDERLY = [end_by_an_exception, end_by_sys_exit, end_in_the_end]
SUDDEN = [end_by_os_exit, end_by_a_signal, end_by_abort, end_by_exec]
KEPT: list[LamportWorkspace] = []


def tell_and_end(connection: Connection, end: Callable[[], None]) -> None:
    time.sleep(PAUSE)
    connection.send(time.monotonic())
    end()


def keep_and_end(connection: Connection, end: Callable[[], None]) -> None:
    """The module has the workspaces."""
    KEPT.extend(workspaces_over(connection, 1))
    tell_and_end(connection, end)


def hold_and_end(connection: Connection, end: Callable[[], None]) -> None:
    """The function has them: they go before the process does."""
    workspaces = workspaces_over(connection, 1)
    tell_and_end(connection, end)
    del workspaces


def leave_and_end(connection: Connection, end: Callable[[], None]) -> None:
    """A `with` block has them."""
    first, second = workspaces_over(connection, 1)
    with first, second:
        tell_and_end(connection, end)


HOLDERS = [keep_and_end, hold_and_end]


SLOW_END = f"import atexit, time; atexit.register(time.sleep, {2 * SOON})"
"""What is registered first comes last: the interpreter takes its time when it has told of its end."""


@contextlib.contextmanager
def a_program(holder: Callable[..., None], end: Callable[[], None]) -> Iterator[Connection]:
    """Rank 1 as a program of its own, whose interpreter ends slowly."""
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        number = theirs.fileno()
        program = f"{SLOW_END}\nexec(compile(open({__file__!r}).read(), {__file__!r}, 'exec'))"
        command = [sys.executable, "-c", program, holder.__name__, end.__name__, str(number)]
        process = subprocess.Popen(command, pass_fds=[number], stderr=subprocess.DEVNULL)
    try:
        yield ours
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def a_worker(holder: Callable[..., None], end: Callable[[], None]) -> Iterator[Connection]:
    """Rank 1 as a process of `multiprocessing`, which ends without the interpreter's end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "lamport_rs"])
    ours, theirs = context.Pipe()
    process = context.Process(target=holder, args=(theirs, end), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def seconds_until_heard(rank_1: contextlib.AbstractContextManager[Connection]) -> list[float]:
    """When `check` raised that rank 1 has ended, and an operation that waited, after the end began."""
    with rank_1 as connection:
        checked, used = workspaces_over(connection, 0)
        heard: list[float] = []
        errors: list[LamportAbortedError] = []

        def check_until_it_raises() -> None:
            deadline = time.monotonic() + LONG
            while time.monotonic() < deadline:
                try:
                    checked.check()
                except LamportAbortedError as error:
                    heard.append(time.monotonic())
                    errors.append(error)
                    return
                time.sleep(0.002)

        thread = threading.Thread(target=check_until_it_raises)
        thread.start()
        with pytest.raises(LamportAbortedError) as caught:
            lamport_rs.all_reduce(torch.ones(8), used)
        heard.append(time.monotonic())
        thread.join()
        assert len(heard) == 2, "a check never raised"
        assert [(error.rank, error.cause) for error in (*errors, caught.value)] == [(1, "ended")] * 2
        assert "create a new one on every rank" in str(caught.value)
        with pytest.raises(LamportError):
            used.reset(timeout=LONG)
        began = connection.recv()
        return [each - began for each in heard]


@pytest.mark.parametrize(
    ("holder", "end"),
    [(hold_and_end, end) for end in ORDERLY]
    + [(keep_and_end, end) for end in SUDDEN]
    + [(leave_and_end, end_by_an_exception)],
)
def test_a_worker_that_ends_is_heard_at_once(holder, end):
    assert max(seconds_until_heard(a_worker(holder, end))) < SOON


@pytest.mark.long
@pytest.mark.parametrize(
    ("holder", "end"), [(holder, end) for end in ORDERLY for holder in HOLDERS] + [(keep_and_end, end_by_exec)]
)
def test_a_program_that_ends_is_heard_before_its_interpreter_has(holder, end):
    assert max(seconds_until_heard(a_program(holder, end))) < SOON


def clean_up_and_end(connection: Connection, end: Callable[[], None]) -> None:
    for workspace in workspaces_over(connection, 1):
        workspace.cleanup()
    tell_and_end(connection, end)


def let_go_and_live(connection: Connection, end: Callable[[], None]) -> None:
    workspaces_over(connection, 1)
    connection.send("let go")
    connection.recv()
    end()


def test_a_process_that_ends_when_it_has_cleaned_up_is_no_fault():
    with a_worker(clean_up_and_end, end_by_os_exit) as connection:
        checked, used = workspaces_over(connection, 0)
        connection.recv()
        with pytest.raises(EOFError):
            connection.recv()
        check_for_a_while(checked)
        with pytest.raises(LamportAbortedError, match="rank 1 has cleaned its workspace up"):
            lamport_rs.all_reduce(torch.ones(8), used)


def test_a_workspace_that_is_let_go_is_no_fault_until_its_process_ends():
    with a_worker(let_go_and_live, end_by_os_exit) as connection:
        checked, used = workspaces_over(connection, 0)
        assert connection.recv() == "let go"
        check_for_a_while(checked)
        with pytest.raises(LamportAbortedError) as caught:
            lamport_rs.all_reduce(torch.ones(8), used)
        assert caught.value.cause == "cleaned_up"
        connection.send("end")
        with pytest.raises(EOFError):
            connection.recv()
        time.sleep(0.06)
        with pytest.raises(LamportAbortedError, match="rank 1 has ended"):
            checked.check()


def fork_and_stay(connection: Connection, end: Callable[[], None]) -> None:
    """A forked process ends in order, with all that it has inherited."""
    KEPT.extend(workspaces_over(connection, 1))
    forked = os.fork()
    if forked == 0:
        sys.exit()
    os.waitpid(forked, 0)
    connection.send("forked")
    connection.recv()
    end()


@pytest.mark.long
def test_the_end_of_a_forked_process_is_not_that_of_the_rank():
    with a_program(fork_and_stay, end_by_os_exit) as connection:
        checked, _ = workspaces_over(connection, 0)
        assert connection.recv() == "forked"
        check_for_a_while(checked)


def main() -> None:
    holder, end, number = sys.argv[1:]
    globals()[holder](Connection(int(number)), globals()[end])


if __name__ == "__main__":
    main()
