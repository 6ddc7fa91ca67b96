"""The rendezvous: over any group, several at once, and what happens when ranks disagree."""

import gc
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import unittest.mock
import weakref
from collections.abc import Callable
from functools import partial

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError, LamportWorkspace
from lamport_rs.rendezvous import _recent, _wait_for, all_gather_over
from ranks import Rank, ThreadRanks, errors_of
from reference import check_same_bits, random_tensor, rounded_sum

PROMPTLY = 5.0
MESSAGE_BYTES = 512
VERSION_OFFSET = 32


def check_sum(workspace: LamportWorkspace, seed: int, elements: int = 100) -> None:
    """A sum over the workspace's ranks, of numbers that depend on the seed."""
    inputs = [random_tensor((elements,), torch.float32, seed, rank) for rank in range(workspace.world_size)]
    total = lamport_rs.all_reduce(inputs[workspace.rank], workspace)
    check_same_bits(total, rounded_sum(inputs), f"seed {seed}")


def use_default_group(me: Rank) -> None:
    for group in (None, dist.group.WORLD):
        with LamportWorkspace(me.rank, me.world_size, 8192, group, device=me.device) as workspace:
            check_sum(workspace, 1)


def test_the_default_group_and_the_group_itself_carry_the_rendezvous(ranks_of):
    ranks_of(3).run(use_default_group)


def use_crossing_groups(me: Rank) -> None:
    """Tensor-parallel pairs, pipeline-like pairs across them, and all ranks: three workspaces, used in turn."""
    rows = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    columns = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    row, column = me.rank // 2, me.rank % 2
    across = LamportWorkspace(column, 2, 8192, rows[row], device=me.device)
    along = LamportWorkspace(row, 2, 16384, columns[column], device=me.device)
    everywhere = me.workspace(1 << 16)
    for round_ in range(100):
        check_sum(across, 1000 * row + round_, 1 + round_)
        if round_ % 3:
            check_sum(along, 2000 + 1000 * column + round_, 200 - round_)
        check_sum(everywhere, round_, 50 * (round_ % 5))
    across.cleanup()
    check_sum(along, 1)
    check_sum(everywhere, 2)


def test_groups_that_cross_each_other_work_side_by_side(ranks_of):
    ranks_of(4).run(use_crossing_groups)


def use_upper_ranks(me: Rank) -> None:
    """Ranks 1 and 2 of the world are ranks 0 and 1 of their group."""
    group = dist.new_group([1, 2])
    if me.rank:
        check_sum(LamportWorkspace(dist.get_rank(group), 2, 8192, group, device=me.device), 1)


def test_ranks_are_those_of_the_group_and_not_of_the_world(ranks_of):
    ranks_of(3).run(use_upper_ranks)


def use_callable_between_processes(me: Rank) -> None:
    store = dist.PrefixStore("callable", dist.distributed_c10d._get_default_store())
    steps = iter(range(100))

    def all_gather(message: bytes) -> list[bytes]:
        step = next(steps)
        store.set(f"{step}/{me.rank}", message)
        return [bytes(store.get(f"{step}/{rank}")) for rank in range(me.world_size)]

    assert_works(me, all_gather)


def assert_works(me: Rank, group) -> None:
    workspace = LamportWorkspace(me.rank, me.world_size, 8192, group, device="cpu")
    for seed in range(20):
        check_sum(workspace, seed)


def test_a_callable_carries_the_rendezvous_between_processes(ranks_of):
    ranks_of(3).run(use_callable_between_processes)


@pytest.mark.parametrize("world_size", [2, 5, 9])
def test_threads_of_one_process_can_be_ranks(world_size):
    ThreadRanks(world_size).run(lambda me: assert_works(me, me.group))


def alternate_workspaces(me: Rank) -> None:
    workspaces = [me.workspace(4096 * (1 + index)) for index in range(5)]
    for round_ in range(50):
        check_sum(workspaces[round_ * 7 % 5], round_)


def test_several_workspaces_of_one_group_do_not_touch_each_other(ranks_of):
    ranks_of(2).run(alternate_workspaces)


# What ranks may disagree in.


def raise_alike(world_size: int, function) -> str:
    """Every rank raises the same error in a few seconds; returns its text."""
    ranks, started = ThreadRanks(world_size, patience=PROMPTLY), time.monotonic()
    errors = errors_of(ranks.try_run(function))
    assert time.monotonic() - started < PROMPTLY
    assert all(isinstance(error, LamportError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1, [str(error) for error in errors]
    assert ranks.run(lambda me: me.workspace(4096).comm_size) == [4096] * world_size
    return str(errors[0])


def test_a_difference_in_comm_size_names_what_each_rank_has():
    text = raise_alike(3, lambda me: me.workspace(4096 if me.rank < 2 else 8192))
    assert "comm_size: rank 0 has 4096, rank 1 has 4096, rank 2 has 8192; pass the same comm_size" in text


def test_a_difference_in_world_size_names_what_each_rank_has():
    text = raise_alike(2, lambda me: LamportWorkspace(me.rank, 2 + me.rank, 4096, me.group, device="cpu"))
    assert "2" in text
    assert "3" in text


def test_a_world_size_that_is_not_the_groups_is_refused():
    text = raise_alike(2, lambda me: LamportWorkspace(me.rank, 4, 4096, me.group, device="cpu"))
    assert "world_size is 4, but the group has 2 ranks" in text


@pytest.mark.parametrize("told", [[1, 0, 2], [0, 0, 2], [2, 2, 2]], ids=["swapped", "given twice", "the same on all"])
def test_ranks_that_are_not_those_of_the_group_are_named(told):
    text = raise_alike(3, lambda me: LamportWorkspace(told[me.rank], 3, 4096, me.group, device="cpu"))
    for rank, wrong in enumerate(told):
        assert (f"rank {rank}: it is rank {rank} of the group, but was told rank={wrong}" in text) == (rank != wrong)


def with_message(change):
    """A rank function whose rank 1 sends other bytes than it should, in the first message."""

    def create(me: Rank) -> LamportWorkspace:
        steps = iter(range(100))

        def all_gather(message: bytes) -> list[bytes]:
            return me.group(change(message) if me.rank == 1 and next(steps) == 0 else message)

        return LamportWorkspace(me.rank, me.world_size, 4096, all_gather, device="cpu")

    return create


def replace_text(old: bytes, new: bytes):
    def change(message: bytes) -> bytes:
        assert old in message
        return message.replace(old, new, 1)

    return change


def test_another_version_is_named():
    length = len(lamport_rs.__version__)
    other = ("9" * length).encode()
    text = raise_alike(2, with_message(replace_text(lamport_rs.__version__.encode(), other)))
    assert f"rank 0 has {lamport_rs.__version__}, rank 1 has {other.decode()}; install the same version" in text


def test_another_backend_is_named():
    text = raise_alike(2, with_message(replace_text(b"\x04host", b"\x04cuda")))
    assert "backend: rank 0 has host, rank 1 has cuda" in text


def test_another_host_is_named():
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip().encode()
    text = raise_alike(2, with_message(replace_text(boot, b"0" * len(boot))))
    assert "host: rank 0 has" in text
    assert "must run on one host" in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda message: b"", "rank 1: its message has 0 bytes instead of 512"),
        (lambda message: message[:-1], "rank 1: its message has 511 bytes"),
        (lambda message: message * 2, "rank 1: its message has 1024 bytes"),
        (lambda message: bytes(MESSAGE_BYTES), "rank 1: its message is not one of lamport-rs"),
        (lambda message: b"\xff" * MESSAGE_BYTES, "rank 1: its message is not one of lamport-rs"),
        (lambda message: message[:8] + struct.pack("<I", 77) + message[12:], "rank 1: .*message format 77"),
        (lambda message: message[:12] + struct.pack("<I", 5) + message[16:], "rank 1: it is at step 5 of"),
        (lambda message: message[:28] + struct.pack("<I", 2**32 - 1) + message[32:], "rank 1: its message is not"),
        (lambda message: message[:28] + struct.pack("<I", 3) + message[32:], "rank 1 sent a payload that cannot be"),
        (
            lambda message: message[:VERSION_OFFSET] + b"\xff" * (MESSAGE_BYTES - VERSION_OFFSET),
            "rank 1 sent a payload",
        ),
    ],
)
def test_bytes_that_are_no_message_are_refused_on_every_rank(change, text):
    with pytest.raises(LamportError, match=text):
        raise LamportError(raise_alike(2, with_message(change)))


def test_a_handle_of_a_file_that_is_not_there_is_refused_on_every_rank():
    """The owner's descriptor number, changed: what is opened there, if anything, is not the peer's block."""

    def change(message: bytes) -> bytes:
        handle = message.index(struct.pack("<I", 32), VERSION_OFFSET) + 4
        return message[: handle + 4] + struct.pack("<i", 2) + message[handle + 8 :]

    text = raise_alike(2, with_message(change))
    assert "rank 0: cannot map the memory of rank 1" in text


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (None, "exchanging handles failed"),
        ([], "the group has 0 ranks"),
        ([b""], "its message has 0 bytes"),
        (["text", "text"], "exchanging handles failed"),
        (5, "exchanging handles failed"),
    ],
    ids=repr,
)
def test_a_callable_that_returns_nonsense_is_an_error(reply, text):
    with pytest.raises(LamportError, match=text):
        LamportWorkspace(0, 2, 4096, lambda message: reply, device="cpu")


@pytest.mark.parametrize("reply", [[], None, 5, ["text"]], ids=repr)
def test_a_rank_that_refuses_raises_its_own_reason_whatever_the_callable_returns(reply):
    for create in (LamportWorkspace, lamport_rs.IpcBuffer, lamport_rs.get_allreduce_workspace):
        with pytest.raises(LamportError, match="rank is 'first', but must be an integer"):
            create("first", 2, 4096, process_group=lambda message: reply, device="cpu")


def test_what_a_callable_raises_is_the_cause_of_the_error():
    def create(me: Rank) -> LamportWorkspace:
        def all_gather(message: bytes) -> list[bytes]:
            me.group(message)
            raise ConnectionError("the wire is cut")

        with pytest.raises(LamportError) as caught:
            LamportWorkspace(me.rank, me.world_size, 4096, all_gather, device="cpu")
        assert isinstance(caught.value.__cause__, ConnectionError)
        raise caught.value

    text = raise_alike(2, create)
    assert "exchanging handles failed on this rank: ConnectionError: the wire is cut" in text


def create_and_look_for_tensors(me: Rank) -> None:
    given: list[weakref.ref[torch.Tensor]] = []
    allgather = dist.ProcessGroup.allgather

    def recorded(group: dist.ProcessGroup, received: list[list[torch.Tensor]], sent: list[torch.Tensor]) -> dist.Work:
        given.extend(weakref.ref(tensor) for tensor in [*received[0], *sent])
        return allgather(group, received, sent)

    with unittest.mock.patch.object(dist.ProcessGroup, "allgather", recorded), me.workspace():
        pass
    gc.collect()
    assert len(given) == ROUNDS * (me.world_size + 1)
    assert all(reference() is not None for reference in given)


def test_gloo_is_not_the_last_to_hold_the_tensors_of_a_rendezvous(ranks_of):
    """With torch 2.6, a group that is destroyed then can wait for its own thread without an end."""
    ranks_of(2).run(create_and_look_for_tensors)


class LateWork:
    """Work of a group that ends while the caller hears that its time is over."""

    def __init__(self, error: str) -> None:
        self.waits, self.error = 0, error

    def wait(self, *_limit: object) -> bool:
        self.waits += 1
        if self.waits == 1:
            raise RuntimeError("Operation timed out!")
        if self.error:
            raise RuntimeError(self.error)
        return True

    def is_completed(self) -> bool:
        return True


def test_work_that_ends_just_when_a_look_at_it_does_is_no_failure():
    work = LateWork("")
    _wait_for(work, 5, on_cpu=True)
    assert work.waits == 2
    with pytest.raises(RuntimeError, match="a peer is gone"):
        _wait_for(LateWork("a peer is gone"), 5, on_cpu=True)


ROUNDS = 1
"""What a construction takes of the group: to bring the handles. That all are mapped the ranks tell in their pages."""


def count_rounds(me: Rank) -> list[int]:
    """Rounds of the group for a workspace, and for a buffer."""
    over_group, counted = all_gather_over(me.group), []

    def all_gather(message: bytes) -> list[bytes]:
        counted[-1] += 1
        return over_group(message)

    counted.append(0)
    me.workspace(4096, process_group=all_gather)
    counted.append(0)
    lamport_rs.IpcBuffer(me.rank, me.world_size, 4096, all_gather, device=me.device)
    return counted


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_construction_takes_one_round_of_the_group(ranks_of, world_size):
    """A round takes a good part of the time that a construction takes."""
    assert ranks_of(world_size).run(count_rounds) == [[ROUNDS, ROUNDS]] * world_size


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
import tempfile, torch, torch.distributed as dist
from lamport_rs.rendezvous import all_gather_over
with tempfile.TemporaryDirectory() as folder:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    assert all_gather_over(None)(bytes(range(256))) == [bytes(range(256))]
    dist.destroy_process_group()
"""


@pytest.mark.long
def test_messages_travel_without_numpy():
    subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT_NUMPY], check=True, timeout=60)


def wait_for_nobody(me: Rank, kind: type) -> float:
    if me.rank == 1:
        time.sleep(3)
        return 0.0
    started = time.monotonic()
    with pytest.raises(LamportError, match=r"waited 0.5 s for the other ranks of the process group"):
        kind(me.rank, me.world_size, 4096, me.group, device=me.device, timeout=0.5)
    took = time.monotonic() - started
    # gloo has the tensors still, and must not be the last to hold them.
    assert len(_recent) == 1
    return took


@pytest.mark.parametrize("kind", [LamportWorkspace, lamport_rs.IpcBuffer])
def test_a_rank_whose_peers_do_not_create_a_workspace_waits_for_the_workspaces_timeout(new_ranks, kind):
    assert 0.5 <= new_ranks(2).run(wait_for_nobody, kind)[0] < 2


def be_interrupted_in_a_construction(me: Rank) -> float:
    if me.rank == 1:
        time.sleep(3)
        return 0.0
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        me.workspace()
    return time.monotonic() - started


def test_a_construction_hears_ctrl_c(new_ranks):
    assert new_ranks(2).run(be_interrupted_in_a_construction)[0] < 1.5


AGREEING = 3.0
"""Seconds that a rank is held up after the round: its peers have mapped its memory, and wait for it."""


def go_on() -> None:
    """Do nothing else."""


def holding_up(
    me: Rank, seconds: float, then: Callable[[], object] = go_on, meanwhile: Callable[[], object] = go_on
) -> Callable[[bytes], list[bytes]]:
    """An all-gather after which the last rank is held up, and does something `then`. Rank 0 does so `meanwhile`."""
    over_group = all_gather_over(me.group)

    def all_gather(message: bytes) -> list[bytes]:
        gathered = over_group(message)
        if me.rank == me.world_size - 1:
            time.sleep(seconds)
            then()
        elif me.rank == 0:
            meanwhile()
        return gathered

    return all_gather


def hold_up_a_rank(me: Rank, then: str) -> tuple[str, float]:
    """The last rank is held up after its round, and then ends or goes on. What the others raise, and how soon."""
    end = partial(os.kill, os.getpid(), signal.SIGKILL)
    interrupt = threading.Timer(AGREEING / 4, os.kill, (os.getpid(), signal.SIGINT)).start
    events = {"end": {"then": end}, "interrupt": {"meanwhile": interrupt}}
    all_gather, began = holding_up(me, AGREEING, **events.get(then, {})), time.monotonic()
    try:
        me.workspace(4096, process_group=all_gather, timeout=AGREEING / 2 if then == "time out" else None, kept=True)
        return "a workspace", time.monotonic() - began
    except (LamportError, KeyboardInterrupt) as error:
        return repr(error), time.monotonic() - began


def test_a_rank_that_is_held_up_while_the_ranks_agree_is_waited_for(new_ranks):
    assert [text for text, _ in new_ranks(3).run(hold_up_a_rank, "go on")] == ["a workspace"] * 3


def test_a_rank_that_is_killed_while_the_ranks_agree_is_named(new_ranks):
    for text, took in new_ranks(3).try_run(hold_up_a_rank, "end")[:2]:
        assert "the process of rank 2 ended before it had mapped all memory" in text
        assert took < AGREEING + PROMPTLY


def test_a_rank_that_does_not_come_so_far_in_time_is_named(new_ranks):
    *others, last = new_ranks(3).run(hold_up_a_rank, "time out")
    for text, took in others:
        assert "waited 1.5 s for rank 2 to map all memory" in text
        assert took < AGREEING
    assert "cannot map the memory of rank" in last[0]


def test_ctrl_c_is_heard_while_the_ranks_agree_and_the_others_hear_of_it(new_ranks):
    interrupted, other, last = new_ranks(3).run(hold_up_a_rank, "interrupt")
    assert interrupted[0] == "KeyboardInterrupt()"
    assert "rank 0: interrupted while waiting for rank 2 to map all memory" in other[0]
    assert interrupted[1] < AGREEING
    assert other[1] < AGREEING
    assert "cannot map the memory of rank" in last[0]


def be_interrupted_when_the_others_have_a_buffer(me: Rank) -> tuple[int, str, str] | None:
    """A signal's handler begins while rank 0 waits for the last rank, and raises when all others have returned."""

    def interrupt(*_: object) -> None:
        time.sleep(AGREEING / 2)
        raise KeyboardInterrupt

    def arrange_interrupt() -> None:
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, AGREEING / 10)

    all_gather = holding_up(me, AGREEING / 4, meanwhile=arrange_interrupt)
    try:
        buffer = lamport_rs.IpcBuffer(me.rank, me.world_size, 4096, all_gather, device=me.device)
    except KeyboardInterrupt:
        dist.barrier()
        return None
    dist.barrier()
    with pytest.raises(lamport_rs.LamportAbortedError) as caught:
        _ = buffer.peer_ptrs
    return caught.value.rank, caught.value.cause, caught.value.reason


def test_the_addresses_of_a_buffer_raise_that_a_rank_was_interrupted_at_the_end(new_ranks):
    heard = (0, "failed", "interrupted while waiting for rank 2 to map all memory")
    assert new_ranks(3).run(be_interrupted_when_the_others_have_a_buffer) == [None, heard, heard]


def ask_for_the_addresses_of_a_rank_that_is_killed(me: Rank) -> str:
    buffer = lamport_rs.IpcBuffer(me.rank, me.world_size, 4096, me.group, device=me.device)
    dist.barrier()
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    until, texts = time.monotonic() + PROMPTLY, []
    # Once it is known it goes on to be: processes are not asked after each time.
    while len(texts) < 3 and time.monotonic() < until:
        try:
            _ = buffer.local_ptr
            assert not texts, "it was forgotten"
        except lamport_rs.LamportAbortedError as error:
            texts.append(str(error))
    assert texts == 3 * texts[:1]
    return texts[0]


def test_the_addresses_of_a_buffer_raise_that_a_rank_has_ended_and_go_on_to_do_so(new_ranks):
    text, _ = new_ranks(2).try_run(ask_for_the_addresses_of_a_rank_that_is_killed)
    assert "rank 1 has ended" in text
    assert text.endswith("Create a new buffer on every rank")
