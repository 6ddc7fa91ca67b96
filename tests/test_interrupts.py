"""Signals, threads and forks: what may happen to a workspace while an operation on it waits."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError, LamportMismatchError
from ranks import CALL_TIMEOUT, ProcessRanks, Rank, ThreadRanks
from reference import check_same_bits
from shared_library import build_library

PATIENCE = 20.0
"""Seconds for what is to happen at once, on a busy machine."""
PROMPT = 5.0
"""Seconds, on a busy machine, from a signal to what it ends: of a wait that has no limit."""
LOCKED = 4
"""Seconds for which a thread keeps the interpreter's lock."""


SIGNALLED_AFTER = 0.2


def await_file(file: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not Path(file).exists():
        assert time.monotonic() < deadline, f"{file} has not come"
        time.sleep(0.01)


def await_sleep(process: int) -> None:
    """Until the process's main thread sleeps whenever one looks: it has come to the end of its way, and waits."""
    deadline, asleep = time.monotonic() + PATIENCE, 0
    while asleep < 5:
        assert time.monotonic() < deadline, f"process {process} does not sleep"
        time.sleep(0.03)
        # The state comes behind the name, which is in brackets.
        state = Path(f"/proc/{process}/task/{process}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0


def signal_a_waiting_rank(ranks: ProcessRanks, ready: Path, number: signal.Signals) -> list:
    """Send rank 0 a signal when its operation waits, and return the outcomes, which have to come promptly."""
    await_file(str(ready))
    await_sleep(ranks.process_id(0))
    signalled = time.monotonic()
    ranks.signal(0, number)
    outcomes = ranks.finish(PATIENCE)
    assert time.monotonic() - signalled < PROMPT
    return outcomes


def wait_for_ever(me: Rank, ready: str) -> str:
    """One rank waits without a limit until a signal comes; then its workspace is of no use."""
    workspace = me.workspace(4096, kept=True, timeout=0)
    if me.rank != 0:
        return ""
    try:
        Path(ready).touch()
        lamport_rs.all_reduce(torch.ones(4), workspace)
    except KeyboardInterrupt:
        with pytest.raises(LamportError, match="interrupted while waiting for rank 1") as refused:
            lamport_rs.all_reduce(torch.ones(4), workspace)
        return str(refused.value)
    return "no KeyboardInterrupt"


def test_a_keyboard_interrupt_ends_a_wait_promptly(new_ranks, tmp_path):
    ranks, ready = new_ranks(2), tmp_path / "ready"
    ranks.start(wait_for_ever, str(ready))
    outcomes = signal_a_waiting_rank(ranks, ready, signal.SIGINT)
    assert "can no longer be used" in str(outcomes[0])


LARGE = 640 << 20
"""Bytes of a region: filling a block of it takes a second or so."""


def interrupt(call: Callable[[], object]) -> float:
    """Interrupt a call on the way. Returns how long after the signal that is raised."""

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, SIGNALLED_AFTER)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call()
    return time.monotonic() - began - SIGNALLED_AFTER


def fill_a_large_block(me: Rank) -> float:
    """Interrupted on the way, as all ranks are by a terminal's Ctrl-C. How long after the signal it is raised."""
    return interrupt(lambda: me.workspace(LARGE, kept=True))


def test_a_keyboard_interrupt_is_heard_while_memory_is_filled(new_ranks):
    assert max(new_ranks(2).run(fill_a_large_block)) < PROMPT / 5


def finalise_for_seconds(me: Rank, with_norm: bool) -> float:
    """Rank 0, interrupted while it finalises experts' rows. How long after the signal that is raised."""
    workspace = me.workspace(4096, kept=True)
    if me.rank != 0:
        return 0.0
    hidden, tokens, rows_of_a_token = 7168, 4096, 256
    rows = torch.ones(8, hidden).bfloat16()
    index = torch.zeros(tokens, rows_of_a_token, dtype=torch.int32)
    experts, out = (rows, index, torch.ones(index.shape)), torch.zeros(tokens, hidden).bfloat16()
    call = functools.partial(lamport_rs.moe_finalize_all_reduce, *experts, workspace, out=out)
    if with_norm:
        operands = *experts, None, rows[0], workspace
        call = functools.partial(lamport_rs.moe_finalize_all_reduce_rms_norm, *operands, out=out)

    heard = interrupt(call)
    assert bool(out.isnan().all())
    with pytest.raises(LamportError, match=r": interrupted\); call reset"):
        lamport_rs.all_reduce(torch.ones(4), workspace)
    return heard


@pytest.mark.parametrize("with_norm", [False, True], ids=["sum", "norm"])
def test_a_keyboard_interrupt_is_heard_while_rows_of_experts_are_finalised(new_ranks, with_norm):
    assert new_ranks(2).run(finalise_for_seconds, with_norm)[0] < PROMPT / 5


def best_time(call: Callable[[], object]) -> float:
    def timed() -> float:
        began = time.monotonic()
        call()
        return time.monotonic() - began

    return min(timed() for _ in range(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_written_about_as_fast_as_memory_is(dtype):
    """Whoever interrupts an operation on a large tensor waits for that."""
    workspace = ThreadRanks(2).run(lambda me: me.workspace(4096, kept=True))[0]
    lamport_rs.bind_to_thread(workspace)
    workspace.abort("a test")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tensor = torch.ones(128 << 20, dtype=torch.uint8).view(dtype)
        plain = best_time(lambda: tensor.fill_(1))

        def refused() -> None:
            with pytest.raises(LamportError, match="a test"):
                lamport_rs.all_reduce(tensor, workspace, out=tensor)

        spoiled = best_time(refused)
    finally:
        torch.set_num_threads(threads)
    assert bool(tensor.isnan().all())
    assert spoiled < 4 * plain, f"{spoiled:.3f} s instead of {plain:.3f} s"


def clean_up_in_a_handler(me: Rank, ready: str, leave: bool) -> str:
    workspace = me.workspace(4096, kept=True, timeout=0)
    if me.rank != 0:
        return ""

    def handle(*_: object) -> None:
        workspace.cleanup()
        if leave:
            raise SystemExit

    signal.signal(signal.SIGTERM, handle)
    try:
        Path(ready).touch()
        lamport_rs.all_reduce(torch.ones(4), workspace)
    except (LamportError, SystemExit) as error:
        with pytest.raises(LamportError, match="was cleaned up; create a new one"):
            lamport_rs.all_reduce(torch.ones(4), workspace)
        return repr(error)
    return "the operation returned"


@pytest.mark.parametrize("leave", [False, True], ids=["that returns", "that leaves"])
def test_a_handler_that_cleans_up_ends_the_operation_that_waits(new_ranks, tmp_path, leave):
    ranks, ready = new_ranks(2), tmp_path / "ready"
    ranks.start(clean_up_in_a_handler, str(ready), leave)
    outcome = signal_a_waiting_rank(ranks, ready, signal.SIGTERM)[0]
    if leave:
        assert outcome == "SystemExit()"
    else:
        assert outcome.startswith("LamportError('operation 1, all_reduce of 4 float32")
        assert ": this workspace was cleaned up while the operation" in outcome


def use_in_a_handler(me: Rank, ready: str, handled: str) -> None:
    """The operation that waits goes on; what the handler called is refused, and so counts on this rank alone."""
    workspace = me.workspace(4096, timeout=0)
    if me.rank == 0:

        def handle(*_: object) -> None:
            workspace.synchronize()
            assert workspace.workspace.numel() == 8
            for target in (workspace, workspace.workspace):
                with pytest.raises(LamportError, match="all_reduce was called from within another operation"):
                    lamport_rs.all_reduce(torch.ones(4), target)
            Path(handled).touch()

        signal.signal(signal.SIGTERM, handle)
        Path(ready).touch()
    else:
        await_file(handled)
    check_same_bits(lamport_rs.all_reduce(torch.ones(4), workspace), torch.full((4,), 2.0))
    with pytest.raises(
        LamportMismatchError, match=r"rank 0 runs operation 4, .*rank 1 runs operation 2,|rank 1 .*rank 0"
    ):
        lamport_rs.all_reduce(torch.ones(4), workspace)


def test_a_handler_that_uses_the_workspace_is_refused_and_the_operation_goes_on(new_ranks, tmp_path):
    ranks, ready = new_ranks(2), tmp_path / "ready"
    ranks.start(use_in_a_handler, str(ready), str(tmp_path / "handled"))
    assert signal_a_waiting_rank(ranks, ready, signal.SIGTERM) == [None, None]


def call_beside_a_thread(me: Rank) -> tuple[float, str]:
    """The main thread is refused while a thread waits for ever; then it gives the workspace up."""
    workspace = me.workspace(4096, kept=True, timeout=0)
    if me.rank != 0:
        return 0.0, ""
    errors: list[LamportError] = []

    bound = threading.Event()

    def wait_in_vain() -> None:
        lamport_rs.bind_to_thread(workspace)
        bound.set()
        try:
            lamport_rs.all_reduce(torch.ones(4), workspace)
        except LamportError as error:
            errors.append(error)

    thread = threading.Thread(target=wait_in_vain, daemon=True)
    thread.start()
    bound.wait(PATIENCE)
    time.sleep(0.2)
    with pytest.raises(LamportError, match="in another thread than the one"):
        lamport_rs.all_reduce(torch.ones(4), workspace)
    with pytest.raises(LamportError, match="another thread's operation"):
        lamport_rs.bind_to_thread(workspace)
    workspace.synchronize()
    assert not errors
    started = time.monotonic()
    workspace.cleanup()
    took = time.monotonic() - started
    thread.join(PATIENCE)
    return took, str(errors)


def test_a_second_thread_is_refused_and_cleaning_up_waits_for_none(new_ranks):
    took, errors = new_ranks(2).run(call_beside_a_thread)[0]
    assert took < PROMPT / 2
    assert "cleaned up while the operation ran" in errors


def wait_beside_the_interpreters_lock(me: Rank, locked: str) -> float:
    """Rank 1 needs rank 0's sums, which a thread of rank 0 makes while its main thread keeps the interpreter's lock."""
    workspace = me.workspace(4096)
    call = functools.partial(lamport_rs.all_reduce, torch.ones(64), workspace, algorithm="two_shot")
    if me.rank == 0:
        ready = threading.Event()

        def reduce() -> None:
            lamport_rs.bind_to_thread(workspace)
            ready.set()
            call()

        thread = threading.Thread(target=reduce)
        thread.start()
        ready.wait(PATIENCE)
        time.sleep(0.2)
        Path(locked).touch()
        ctypes.PyDLL(None).sleep(LOCKED)
        thread.join(PATIENCE)
        return 0.0
    await_file(locked)
    time.sleep(0.5)
    started = time.monotonic()
    call()
    return time.monotonic() - started


def test_a_threads_wait_does_not_wait_for_the_interpreters_lock(new_ranks, tmp_path):
    assert new_ranks(2).run(wait_beside_the_interpreters_lock, str(tmp_path / "locked"))[1] < LOCKED / 2


def wait_in_pythons_main_thread() -> None:
    """To be run where Python is not in the process's first thread: a signal ends a wait that has no limit."""
    assert threading.main_thread().native_id != os.getpid()
    assert threading.current_thread() is threading.main_thread()
    workspace = ThreadRanks(2).run(lambda me: me.workspace(4096, kept=True, timeout=0))[0]
    lamport_rs.bind_to_thread(workspace)

    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(KeyboardInterrupt):
        lamport_rs.all_reduce(torch.ones(4), workspace)


@pytest.mark.long
def test_a_signal_ends_a_wait_where_python_is_not_in_the_first_thread(tmp_path):
    source = Path(__file__).with_name("python_in_a_second_thread.c")
    library = build_library(tmp_path / "second_thread.so", source.read_text(), "-ldl", "-lpthread")
    code = "import test_interrupts; test_interrupts.wait_in_pythons_main_thread()"
    paths = os.pathsep.join([str(source.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "LD_PRELOAD": str(library)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=CALL_TIMEOUT)


def fork_and_reduce(me: Rank) -> list[int]:
    """The exit codes of a process forked from each rank, before and while the rank goes on."""
    workspace = me.workspace(4096, timeout=10)
    total = torch.full((4,), float(me.world_size))
    check_same_bits(lamport_rs.all_reduce(torch.ones(4), workspace), total)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (workspace.synchronize, lambda: lamport_rs.all_reduce(torch.full((4,), 9.0), workspace)):
                with pytest.raises(LamportError, match=f"belongs to process {os.getppid()}, from which this one"):
                    call()
            workspace.cleanup()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    for _ in range(5):
        check_same_bits(lamport_rs.all_reduce(torch.ones(4), workspace), total)
    return [os.waitstatus_to_exitcode(status)]


def test_a_forked_process_is_refused_and_does_not_disturb_the_rank(new_ranks):
    assert new_ranks(2).run(fork_and_reduce) == [[0], [0]]
