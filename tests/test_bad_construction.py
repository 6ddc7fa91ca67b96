"""Arguments that make no workspace: all ranks raise the same error, promptly, whichever rank's they are."""

import time

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from ranks import Rank, ThreadRanks, errors_of

PROMPTLY = 5.0

BAD = {
    # name: (changes to the arguments, what the error says)
    "a group of one": ({"world_size": 1}, "world_size is 1, but must be between 2 and 16"),
    "a group of none": ({"world_size": 0}, "world_size is 0"),
    "a negative group": ({"world_size": -2}, "world_size is -2"),
    "a group of seventeen": ({"world_size": 17}, "world_size is 17"),
    "a negative rank": ({"rank": -1}, r"rank is -1, but must be between 0 and 1 \(world_size is 2\)"),
    "a rank beyond the group": ({"rank": 2}, "rank is 2, but must be between 0 and 1"),
    "no memory": ({"comm_size": 0}, "comm_size is 0 bytes, but must be a positive multiple of 16"),
    "negative memory": ({"comm_size": -16}, "comm_size is -16 bytes"),
    "memory of half vectors": ({"comm_size": 4104}, "comm_size is 4104 bytes, but must be a positive multiple of 16"),
    "more memory than addresses": ({"comm_size": 2**62}, "more than this machine can address"),
    "more memory than there is": ({"comm_size": 2**56}, "pass a smaller comm_size"),
    "memory in fractions": ({"comm_size": 4096.0}, "must be an integer"),
    "more memory than an integer": ({"comm_size": 2**70}, "must be an integer of at most 64 bits"),
    "a rank in words": ({"rank": "0"}, "rank is '0', but must be an integer"),
    "a negative timeout": ({"timeout": -1.0}, "timeout is -1 seconds, but must be positive, or 0 or infinite"),
    "a timeout that is no number": ({"timeout": float("nan")}, "timeout is NaN"),
    "a timeout before all time": ({"timeout": float("-inf")}, "timeout is -inf"),
    "an unknown backend": ({"backend": "rdma"}, "backend is 'rdma'"),
    "a device that no backend serves": ({"device": "meta"}, "meta"),
    "a backend that does not fit the device": ({"backend": "cuda", "device": "cpu"}, "cannot serve device cpu"),
}


def create(me: Rank, offenders: list[int], changes: dict) -> str:
    """A workspace with bad arguments on some ranks."""
    arguments = {"rank": me.rank, "world_size": me.world_size, "comm_size": 4096, "device": "cpu"}
    if me.rank in offenders:
        arguments |= changes
    lamport_rs.LamportWorkspace(process_group=me.group, **arguments)
    return "a workspace"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("offenders", [[0, 1], [1], [0]], ids=["on all ranks", "on rank 1", "on rank 0"])
@pytest.mark.parametrize("name", BAD)
def test_all_ranks_raise_the_same_error_promptly(name, offenders):
    changes, text = BAD[name]
    ranks, started = ThreadRanks(2, patience=PROMPTLY), time.monotonic()
    errors = errors_of(ranks.try_run(create, offenders, changes))
    assert time.monotonic() - started < PROMPTLY
    for error in errors:
        assert isinstance(error, LamportError), repr(error)
        assert str(error) == str(errors[0])
    with pytest.raises(LamportError, match=text):
        raise errors[0]
    if len(offenders) == 1:
        assert f"rank {offenders[0]}" in str(errors[0])
    assert ranks.run(create, [], {}) == ["a workspace"] * 2


@pytest.mark.parametrize("size", [0, -1, 2**62])
def test_a_buffer_of_an_impossible_size_is_refused_on_every_rank(size):
    errors = errors_of(ThreadRanks(2).try_run(create_buffer, size))
    assert all(isinstance(error, LamportError) for error in errors)
    assert str(errors[0]) == str(errors[1])


def create_buffer(me: Rank, size: int) -> None:
    lamport_rs.IpcBuffer(me.rank, me.world_size, size if me.rank == 0 else 4096, me.group, device="cpu")


@pytest.mark.parametrize("group", ["group", 5, object(), [0, 1], torch.ones(2)], ids=lambda group: type(group).__name__)
def test_a_process_group_of_a_wrong_type_is_refused(group):
    with pytest.raises(LamportError, match=f"process_group must be .*, not {type(group).__name__}"):
        lamport_rs.LamportWorkspace(0, 2, 4096, group, device="cpu")


def test_without_any_process_group_the_error_says_what_to_call():
    with pytest.raises(LamportError, match=r"torch\.distributed\.init_process_group"):
        lamport_rs.LamportWorkspace(0, 2, 4096, device="cpu")
    with pytest.raises(LamportError, match=r"torch\.distributed\.init_process_group"):
        lamport_rs.get_allreduce_workspace(0, 2)
