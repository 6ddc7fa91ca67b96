"""Workspaces on GPUs come to be on all ranks, or fail with the same error on all of them."""

import driver
import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from minimax_rows import Operation, workspace_for
from ranks import Rank, errors_of
from test_rendezvous import ROUNDS, count_rounds
from worlds import WORLD_SIZES, all_on_the_first_gpu, only_its_own_gpu, without_setting_the_device

BAD = {
    # name: (changes to the arguments, what the error says)
    "another group size": ({"world_size": 3}, "world_size"),
    "another comm_size": ({"comm_size": 1 << 21}, "the ranks differ in comm_size: rank 0 has"),
    "half vectors": ({"comm_size": 4104}, "comm_size is 4104 bytes, but must be a positive multiple of 16"),
    "more memory than there is": ({"comm_size": 1 << 44}, r"cuMemAlloc of \d+ bytes .*CUDA_ERROR_OUT_OF_MEMORY"),
    "another backend": ({"device": "cpu"}, "the ranks differ in backend"),
    "a device that is not there": ({"device": "cuda:63"}, "there is no cuda:63"),
    "a backend that does not fit": ({"backend": "host"}, "cannot serve device cuda"),
    "a rank beyond the group": ({"rank": 77}, "rank is 77"),
    "a negative timeout": ({"timeout": -1.0}, "timeout is -1 seconds"),
}


def create(me: Rank, offender: int | None, changes: dict) -> str:
    arguments = {"rank": me.rank, "world_size": me.world_size, "comm_size": 1 << 20, "device": me.device}
    if me.rank == offender:
        arguments |= changes
    workspace = lamport_rs.LamportWorkspace(**arguments)
    assert workspace.backend == "cuda"
    assert workspace.device == me.device
    assert f'device="{me.device}", backend="cuda"' in repr(workspace)
    operation = Operation.random(me, 100, (256, 64))
    operation(workspace)
    operation.check("a new workspace")
    torch.cuda.synchronize()
    dist.barrier()
    return "a workspace"


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_bad_arguments_of_one_rank_are_the_same_error_on_all(ranks_of, world_size, name):
    changes, text = BAD[name]
    ranks = ranks_of(world_size)
    for offender in (0, world_size - 1):
        errors = errors_of(ranks.try_run(create, offender, changes))
        assert all(isinstance(error, LamportError) for error in errors), errors
        assert {str(error) for error in errors} == {str(errors[0])}
        with pytest.raises(LamportError, match=text):
            raise errors[0]
    assert ranks.run(create, None, {}) == ["a workspace"] * world_size


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_that_share_a_gpu_are_told_so(new_gpu_ranks, world_size):
    ranks = new_gpu_ranks(world_size, all_on_the_first_gpu)
    errors = errors_of(ranks.try_run(create, None, {}))
    assert all(isinstance(error, LamportError) for error in errors), errors
    assert {str(error) for error in errors} == {str(errors[0])}
    assert "it is on the same GPU as this rank" in str(errors[0])
    assert "give every rank a GPU of its own" in str(errors[0])


@pytest.mark.own_gpus
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_that_each_see_only_their_own_gpu_work(new_gpu_ranks, world_size):
    ranks = new_gpu_ranks(world_size, only_its_own_gpu)
    assert ranks.run(count_gpus) == [1] * world_size
    assert ranks.run(create, None, {}) == ["a workspace"] * world_size


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_construction_takes_one_round_of_the_group(ranks_of, world_size):
    """Each takes a good part of the time that a construction takes. The verification needs none."""
    assert ranks_of(world_size).run(count_rounds) == [[ROUNDS, ROUNDS]] * world_size


def count_gpus(_me: Rank) -> int:
    return torch.cuda.device_count()


def create_over_nccl(me: Rank) -> None:
    group = dist.new_group(backend="nccl")
    try:
        workspace = workspace_for(me, 64, process_group=group)
        operation = Operation.random(me, 64, (1536, 256))
        operation(workspace)
        operation.check("over NCCL")
        with pytest.raises(LamportError, match="the ranks differ in comm_size"):
            me.workspace((1 + me.rank) << 20, process_group=group)
        torch.cuda.synchronize()
        dist.barrier()
    finally:
        dist.destroy_process_group(group)


@pytest.mark.own_gpus
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_can_meet_over_nccl(new_gpu_ranks, world_size):
    new_gpu_ranks(world_size).run(create_over_nccl)


def create_on_another_device(me: Rank) -> list[float]:
    """On a rank's own device, with another one, the same on all ranks, for the current one."""
    assert torch.cuda.current_device() == 0
    group = dist.new_group(backend="nccl")
    try:
        x = torch.ones(8, device=me.device)
        with me.workspace(1 << 16, process_group=group) as workspace:
            total = lamport_rs.all_reduce(x, workspace).tolist()
        table = lamport_rs.get_allreduce_workspace(me.rank, me.world_size, process_group=group, device=me.device)
        assert table.device == me.device
        lamport_rs.IpcBuffer(me.rank, me.world_size, 4096, group, device=me.device).cleanup()
        lamport_rs.clear_workspace_cache()
        return total
    finally:
        dist.destroy_process_group(group)


@pytest.mark.own_gpus
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_rendezvous_runs_on_the_workspaces_device_and_not_on_the_current_one(new_gpu_ranks, world_size):
    ranks = new_gpu_ranks(world_size, without_setting_the_device)
    assert ranks.run(create_on_another_device) == [[float(world_size)] * 8] * world_size


def keep_old_tables(me: Rank, rounds: int) -> None:
    """Ranks give their workspaces up at different times, as garbage collection does."""
    kept = []
    for round_ in range(rounds):
        workspace = workspace_for(me, 64)
        operation = Operation.random(me, 64, (256, 64), seed=round_)
        for _ in range(4):
            operation.poison()
            operation(workspace)
            operation.check(f"workspace {round_}")
        torch.cuda.synchronize()
        dist.barrier()
        if (round_ + me.rank) % 3 == 0:
            kept.append(workspace.workspace)
        if len(kept) > 3:
            kept.pop(0)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_peers_table_that_is_kept_does_not_disturb_the_next_workspace(ranks_of, world_size):
    ranks_of(world_size).run(keep_old_tables, 30)


def find_contexts(me: Rank) -> list[int]:
    """The devices with a context of this process's, once the package has looked at CUDA and before it maps peers."""
    lamport_rs.backends.resolve_backend("auto", me.device)
    return driver.devices_with_a_context()


@pytest.mark.own_gpus
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_rank_makes_a_context_on_its_own_gpu_only(new_gpu_ranks, world_size):
    """One on another GPU takes some 500 MiB of that GPU's memory, and the time to make it."""
    assert new_gpu_ranks(world_size).run(find_contexts) == [[rank] for rank in range(world_size)]
