"""Nothing stays behind: no descriptor, no mapping, no file, whether it worked, failed or was killed."""

import contextlib
import gc
import os
import random
import signal
import time
from pathlib import Path

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError, LamportTimeoutError
from ranks import Failure, Rank, ThreadRanks

REPETITIONS = 200
WARM_UP = 3


@pytest.fixture(autouse=True, scope="module")
def a_word_of_this_process() -> None:
    """The word by which peers hear that the process ends: it is there from the first workspace on, and stays."""
    ThreadRanks(2).run(lambda me: me.workspace(4096))


def resources() -> tuple[int, int]:
    """Open descriptors, and mappings of the package's memory."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len(os.listdir("/proc/self/fd")), sum("memfd:lamport-rs" in line for line in maps)


def use_and_clean_up(me: Rank) -> None:
    with me.workspace(4096) as workspace:
        lamport_rs.all_reduce(torch.ones(8), workspace)
    workspace = me.workspace(4096)
    table = workspace.workspace
    del workspace
    lamport_rs.all_reduce(torch.ones(8), table)
    lamport_rs.IpcBuffer(me.rank, me.world_size, 4096, me.group, device="cpu")


def disagree(me: Rank) -> None:
    with pytest.raises(LamportError, match="the ranks differ in comm_size"):
        me.workspace(4096 * (1 + me.rank))


def refuse_on_one_rank(me: Rank) -> None:
    with pytest.raises(LamportError, match="timeout"):
        me.workspace(4096, timeout=-float(me.rank))


def lose_the_transport(me: Rank) -> None:
    def all_gather(message: bytes) -> list[bytes]:
        me.group(message)
        raise ConnectionError

    with pytest.raises(LamportError, match="exchanging handles failed"):
        me.workspace(4096, process_group=all_gather)


def miss_a_rank(me: Rank) -> None:
    workspace = me.workspace(4096, timeout=0.002)
    if me.rank == 0:
        with pytest.raises(LamportTimeoutError):
            lamport_rs.all_reduce(torch.ones(8), workspace)
    me.group(b"")  # A workspace that goes is told to the peers, which do not wait for it.


def call_badly(me: Rank) -> None:
    with me.workspace(4096) as workspace, pytest.raises(LamportError):
        lamport_rs.all_reduce(torch.ones(8, dtype=torch.int32), workspace)


@pytest.mark.parametrize(
    "function",
    [use_and_clean_up, disagree, refuse_on_one_rank, lose_the_transport, miss_a_rank, call_badly],
    ids=lambda function: function.__name__,
)
def test_neither_descriptors_nor_mappings_are_leaked(function):
    ranks = ThreadRanks(2)

    def repeat(me: Rank, times: int) -> None:
        for _ in range(times):
            function(me)

    ranks.run(repeat, WARM_UP)
    before = resources()
    assert before[1] == 1, "mappings of earlier tests are still there"
    ranks.run(repeat, REPETITIONS)
    assert resources() == before


def test_the_count_of_mappings_counts_the_packages_memory():
    """A leak would be seen: two ranks map two blocks and two pages each, and close their descriptors then."""
    gc.collect()
    before = resources()
    workspaces = ThreadRanks(2).run(lambda me: me.workspace(4096))
    assert resources() == (before[0], before[1] + 8)
    del workspaces
    assert resources() == before


def create_and_reduce_for_ever(me: Rank, close: bool) -> None:
    while True:
        workspace = me.workspace(1 << 20, timeout=5)
        for _ in range(20):
            lamport_rs.all_reduce(torch.ones(1000), workspace)
        if close:
            workspace.cleanup()


def blocks_of(process: int) -> set[tuple[int, int]]:
    """Device and inode of the package's memory that a process has open or mapped."""
    found = set()
    directory = Path(f"/proc/{process}")
    with contextlib.suppress(OSError):  # Of another user, or gone.
        for line in (directory / "maps").read_text().splitlines():
            if "memfd:lamport-rs" in line:
                major, minor = line.split()[3].split(":")
                found.add((os.makedev(int(major, 16), int(minor, 16)), int(line.split()[4])))
        for descriptor in (directory / "fd").iterdir():
            with contextlib.suppress(OSError):
                if "memfd:lamport-rs" in os.readlink(descriptor):
                    status = descriptor.stat()
                    found.add((status.st_dev, status.st_ino))
    return found


def all_blocks() -> set[tuple[int, int]]:
    """Likewise of all processes. The kernel keeps such memory for as long as one of them has it, and no longer."""
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return set().union(*map(blocks_of, processes))


def test_a_block_that_anything_keeps_is_found():
    gc.collect()
    before = all_blocks()
    tables = ThreadRanks(2).run(lambda me: me.workspace(4096).workspace)
    kept = blocks_of(os.getpid()) - before
    assert len(kept) == 4
    assert kept <= all_blocks()
    del tables
    gc.collect()
    assert not kept & all_blocks()


def stop(process: int) -> None:
    os.kill(process, signal.SIGSTOP)
    while Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.001)


@pytest.mark.parametrize("round_", range(6))
def test_ranks_killed_at_any_moment_leave_no_shared_memory(new_ranks, round_):
    ranks = new_ranks(3)
    processes = ranks.run(process_of)
    ranks.start(create_and_reduce_for_ever, round_ % 2 == 0)
    time.sleep(random.Random(round_).uniform(0, 0.1))
    deadline = time.monotonic() + 20
    while any(len(blocks_of(process)) < 2 for process in processes):
        assert time.monotonic() < deadline, "the ranks have made no workspace"
    for process in processes:
        stop(process)
    blocks = set().union(*map(blocks_of, processes))
    assert len(blocks) >= 3
    ranks.kill()
    assert not blocks & all_blocks()


def process_of(me: Rank) -> int:
    return os.getpid()


def take_part(me: Rank) -> int:
    return me.rank


def test_a_killed_rank_is_an_error_on_the_others_while_they_create(new_ranks):
    """In the rendezvous it is the transport that notices, in an operation the timeout."""
    ranks = new_ranks(3)
    ranks.run(take_part)
    ranks.start(create_and_reduce_for_ever, True)
    time.sleep(0.3)
    ranks.signal(1, signal.SIGKILL)
    outcomes = ranks.finish(30)
    assert isinstance(outcomes[1], Failure)
    assert isinstance(outcomes[1].error, ChildProcessError)
    for outcome in (outcomes[0], outcomes[2]):
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.error, LamportError), str(outcome)
