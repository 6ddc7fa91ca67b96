"""Memory that the machine or a container does not have for all ranks: an error on all, and nobody is killed."""

import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lamport_rs
import pytest
from lamport_rs import LamportError
from ranks import Rank

MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
PATIENCE = 20.0
"""Seconds for processes that were killed to leave their control group."""


def available() -> int:
    """Bytes of the machine's memory."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    return int(found[1]) << 10


def try_to_create(me: Rank, comm_size: int) -> str:
    try:
        me.workspace(comm_size, timeout=20).cleanup()
    except LamportError as error:
        return str(error)
    return "created"


@pytest.mark.parametrize("kind", ["workspace", "buffer"])
def test_the_machine_has_to_hold_the_memory_of_all_ranks(kind):
    """Each alone would fit. Nothing is allocated: the other ranks of this one's group do not exist."""
    size = int(available() * 0.4)

    def all_gather(message: bytes) -> list[bytes]:
        return [message]

    if kind == "workspace":
        create = functools.partial(lamport_rs.LamportWorkspace, 0, 4, size // 3 // 16 * 16)
    else:
        create = functools.partial(lamport_rs.IpcBuffer, 0, 4, size // 16 * 16)
    with pytest.raises(LamportError) as raised:
        create(all_gather, device="cpu")
    text = str(raised.value)
    found = re.search(r"allocating (\d+) bytes of shared memory on each of 4 ranks, (\d+) together, failed: the "
                      r"machine has (\d+) bytes available; pass a smaller (\w+)", text)  # fmt: skip
    assert found, text
    each, together, left = (int(number) for number in found.groups()[:3])
    assert each < left < together == 4 * each
    assert found[4] == ("comm_size" if kind == "workspace" else "size")


class ControlGroup:
    """A control group with a limit, into which ranks move."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        folder.mkdir()
        name = "memory.limit_in_bytes" if (folder / "memory.limit_in_bytes").exists() else "memory.max"
        (folder / name).write_text(str(limit))

    def killed(self) -> int:
        """Processes that it had killed."""
        files = (self.folder / "memory.oom_control", self.folder / "memory.events")
        text = "\n".join(file.read_text() for file in files if file.exists())
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])


@pytest.fixture
def control_groups() -> Iterator[Callable[[int], ControlGroup]]:
    """`control_groups(limit)` makes one, where this process may."""
    made: list[ControlGroup] = []
    first = OWN.read_text().splitlines()
    controllers = [line for line in first if "memory" in line.split(":")[1].split(",")]
    home = GROUPS / "memory" if controllers else GROUPS

    def make(limit: int) -> ControlGroup:
        try:
            made.append(ControlGroup(home / f"lamport_rs_test_{os.getpid()}_{len(made)}", limit))
        except OSError as error:
            pytest.skip(f"needs a control group of its own: {error}")
        return made[-1]

    yield make
    for group in made:
        deadline = time.monotonic() + PATIENCE
        while (group.folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        group.folder.rmdir()


def create_in(me: Rank, folders: dict[int, str], comm_size: int) -> list[str]:
    if me.rank in folders:
        Path(folders[me.rank], "cgroup.procs").write_text(str(os.getpid()))
    return [try_to_create(me, comm_size), try_to_create(me, MIB)]


LIMIT, SLOT = 300 * MIB, 50 * MIB
"""Blocks of 150 MiB: one fits in, two do not."""


def test_a_container_has_to_hold_the_memory_of_all_ranks_in_it(new_ranks, control_groups):
    group = control_groups(LIMIT)
    ranks = new_ranks(3)
    first, *others = ranks.run(create_in, {0: str(group.folder), 2: str(group.folder)}, SLOT)
    assert others == [first] * 2
    refused, small = first
    each = 3 * SLOT
    found = re.search(r"allocating (\d+) bytes of shared memory on each of 2 ranks, (\d+) together, failed: the "
                      r"control group \(container\) of ranks 0, 2 may have (\d+) bytes, of which (\d+) are left; pass "
                      r"a smaller comm_size", refused)  # fmt: skip
    assert found, refused
    assert each <= int(found[1]) < each + MIB
    assert int(found[2]) == 2 * int(found[1])
    assert int(found[3]) == LIMIT
    assert each < int(found[4]) < 2 * each, "one alone would fit in"
    assert small == "created"
    assert group.killed() == 0
    ranks.kill()


def test_containers_that_hold_one_rank_each_are_enough(new_ranks, control_groups):
    groups = [control_groups(LIMIT) for _ in range(2)]
    ranks = new_ranks(2)
    folders = {rank: str(group.folder) for rank, group in enumerate(groups)}
    assert ranks.run(create_in, folders, SLOT) == [["created", "created"]] * 2
    assert [group.killed() for group in groups] == [0, 0]
    ranks.kill()
