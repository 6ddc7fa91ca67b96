"""SGLang in the benchmark: what it chooses by size, and what its kernels are given. Without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lamport_rs.command_line.bench import sglang_choice
from lamport_rs.command_line.bench.cases import all_reduce_case, rows_case
from lamport_rs.command_line.bench.implementations import sglang
from lamport_rs.command_line.bench.member import UnavailableError
from lamport_rs.command_line.bench.problems import EPSILON, pose
from peers_on_the_host import (
    BLACKWELL,
    HOPPER,
    KIB,
    MIB,
    MULTIPROCESSORS,
    made_up_memory,
    norm_into,
    peers_on_the_host,
    solve,
    sum_into,
)
from ranks import Rank
from torch.distributed import _symmetric_memory


@pytest.mark.parametrize(
    ("capability", "world_size", "size", "chosen"),
    [
        (HOPPER, 2, 16 * MIB, "1shot_push"),
        (HOPPER, 2, 16 * MIB + 16, None),
        (HOPPER, 3, 1280 * KIB, "1shot_push"),
        (HOPPER, 3, 1280 * KIB + 16, "2shot_pull"),
        (HOPPER, 4, 384 * KIB, "1shot_push"),
        (HOPPER, 4, 384 * KIB + 16, "2shot_pull"),
        (HOPPER, 4, 16 * MIB + 16, None),
        (HOPPER, 8, 128 * KIB, "1shot_push"),
        (HOPPER, 8, 128 * KIB + 16, "2shot_pull"),
        (BLACKWELL, 2, 8 * MIB, "1shot_push"),
        (BLACKWELL, 2, 8 * MIB + 16, "1shot_pull"),
        (BLACKWELL, 4, 640 * KIB, "1shot_push"),
        (BLACKWELL, 4, 8 * MIB, "2shot_push"),
        (BLACKWELL, 4, 8 * MIB + 16, "2shot_pull"),
    ],
)
def test_sglang_chooses_by_the_limits_of_its_release(capability, world_size, size, chosen):
    assert sglang_choice.chosen_algorithm(size, world_size, capability) == chosen
    pushed = "1shot_push" if chosen == "1shot_push" else "2shot_push"
    assert sglang_choice.push_algorithm(size, world_size, capability) == pushed


@pytest.mark.parametrize(("capability", "world_size"), [(HOPPER, 9), ((10, 7), 4), ((8, 0), 2)])
def test_gpus_that_sglangs_limits_are_not_recorded_for_are_named(capability, world_size):
    for choose in (sglang_choice.chosen_algorithm, sglang_choice.push_algorithm):
        with pytest.raises(UnavailableError, match=rf"these are {world_size} of {capability[0]}\.{capability[1]}$"):
            choose(16, world_size, capability)


def test_sglangs_slots_blocks_and_norms_are_those_of_its_release():
    assert sglang_choice.push_slot_bytes(8192, 4, "1shot_push") == 8192
    assert sglang_choice.push_slot_bytes(8192, 4, "2shot_push") == 4096
    assert sglang_choice.push_slot_bytes(8192 + 16, 4, "2shot_push") == 4096 + 32
    blocks = [sglang_choice.pull_blocks(n, which, 148) for which in (HOPPER, BLACKWELL) for n in (2, 4)]
    assert blocks == [64, 64, 148, 96]
    rows = [[sglang_choice.norm_in_two_shots(n, ranks) for n in (7, 8, 47, 48)] for ranks in (2, 4, 8)]
    assert rows == [[False, False, False, True], [False, False, False, True], [False, True, True, True]]


def check_push_plane(communicator: Any, me: Rank, slot: int, blocks: int) -> None:
    plane, pull = communicator.arguments
    rank, world_size, workspaces, counters, multicast = plane.arguments
    assert (rank, world_size, pull, multicast) == (me.rank, me.world_size, None, 0)
    assert [each.shape for each in workspaces] == me.world_size * [(2 * me.world_size, slot)]
    assert not workspaces[me.rank].any(), "it polls for what is not zero"
    assert (counters.shape, counters.dtype) == ((blocks, 4), torch.uint8)
    assert not counters.any()


def sums_by_sglang(me: Rank) -> list[str]:
    algorithms = []

    def all_reduce(communicator, tensor, algorithm, addresses, multicast):
        assert (addresses, multicast) == (None, False)
        check_push_plane(communicator, me, 256 * KIB, MULTIPROCESSORS)
        algorithms.append(algorithm)
        return sum_into(torch.empty_like(tensor), tensor)

    library = SimpleNamespace(register_communicator=lambda: None, all_reduce=all_reduce)
    with peers_on_the_host(me, library) as member:
        solve(
            sglang.SglangPush, [all_reduce_case(size, torch.bfloat16) for size in (512, 256 * KIB, 512 * KIB)], member
        )
    return algorithms[::2]


def test_sglang_pushes_sums_with_planes_of_slots_and_counters(ranks_of):
    # Of four ranks, a slot for two shots of 512 KiB holds as much as one for one shot of 256.
    for algorithms in ranks_of(4).run(sums_by_sglang):
        assert algorithms == ["1shot_push", "1shot_push", "2shot_push"]


def norms_by_sglang(me: Rank) -> list[bool]:
    names = ["out", "input", "weight", "epsilon", "residual", "residual_out", "weight_offset", "two_shot", "vectors"]
    in_two_shots = []

    def run_plain(communicator, *arguments):
        check_push_plane(communicator, me, 4 * MIB, 512)
        found = dict(zip(names, arguments, strict=True))
        assert (found["epsilon"], found["weight_offset"], found["vectors"]) == (EPSILON, 0.0, 1)
        in_two_shots.append(found["two_shot"])
        norm_into(found["out"], found["residual_out"], found, found["weight"])

    library = SimpleNamespace(register_communicator=lambda: None, run_plain=run_plain)
    with peers_on_the_host(me, library) as member:
        solve(sglang.SglangPush, [rows_case("all_reduce_rms_norm", rows) for rows in (1, 48)], member)
    return in_two_shots[::2]


def test_sglangs_fused_norm_takes_two_shots_from_48_rows_on(ranks_of):
    assert ranks_of(2).run(norms_by_sglang) == 2 * [[False, True]]


def pulls_by_sglang(me: Rank) -> str:
    def all_reduce(communicator, tensor, algorithm, addresses, multicast):
        push, pull = communicator.arguments
        rank, world_size, workspaces, semaphores, *multicasts = pull.arguments
        assert (push, rank, world_size, multicasts, multicast) == (None, me.rank, me.world_size, [0, 0], False)
        assert [each.numel() for each in workspaces] == me.world_size * [0]
        assert [each.shape for each in semaphores] == me.world_size * [(64, 128)]
        assert (addresses.dtype, addresses.shape) == (torch.uint64, (me.world_size,))
        assert addresses.view(torch.int64)[me.rank] == tensor.data_ptr(), "peers load the input from another place"
        assert algorithm == "2shot_pull"
        return sum_into(tensor, tensor)

    library = SimpleNamespace(register_communicator=lambda: None, all_reduce=all_reduce)
    with peers_on_the_host(me, library) as member:
        solve(sglang.SglangPull, [all_reduce_case(size, torch.bfloat16) for size in (512 * KIB, MIB)], member)
        made = sglang.SglangPull(member, [all_reduce_case(size, torch.bfloat16) for size in (512, MIB)])
        with pytest.raises(UnavailableError, match="does not pull 512 bytes here") as refused:
            made.prepare(pose(all_reduce_case(512, torch.bfloat16), member))
        with pytest.raises(UnavailableError, match="pulls none of these sizes"):
            sglang.SglangPull(member, [all_reduce_case(512, torch.bfloat16)])
    return str(refused.value)


def test_sglang_pulls_inputs_that_lie_in_symmetric_memory(ranks_of):
    assert len(set(ranks_of(4).run(pulls_by_sglang))) == 1


def qk_norms_by_sglang(me: Rank) -> None:
    most = [8 * 16384]

    def fused_parallel_qknorm(communicator, q, k, q_weight, k_weight, epsilon):
        check_push_plane(communicator, me, most[0], 3 * MULTIPROCESSORS)
        for part, weight in ((q, q_weight), (k, k_weight)):
            squares = part.float().square().sum(-1, keepdim=True)
            dist.all_reduce(squares)
            scale = torch.rsqrt(squares / (part.shape[1] * me.world_size) + epsilon)
            part.copy_(part.float() * scale * weight.float())

    library = SimpleNamespace(
        register_communicator=lambda: None,
        get_max_occupancy=lambda: 3,
        fused_parallel_qknorm=fused_parallel_qknorm,
    )
    with peers_on_the_host(me, library) as member:
        solve(sglang.SglangQkNorm, [rows_case("minimax_allreduce_rms_qk", rows) for rows in (1, 8)], member)
        # Two calls in turn must not share a region, which SGLang's own check does not see to.
        most[0] = 8 * me.world_size * 10240
        solve(sglang.SglangQkNorm, [rows_case("minimax_allreduce_rms_qk", 10240)], member)


@pytest.mark.long
def test_sglangs_norms_of_q_and_k_are_in_place(ranks_of):
    ranks_of(2).run(qk_norms_by_sglang)


def memory_with_multicast(me: Rank) -> None:
    with peers_on_the_host(me, None) as member, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_symmetric_memory, "rendezvous", made_up_memory(multicast=1)[1])
        sglang.Symmetric(member, 16)


def test_memory_with_multicast_is_refused(ranks_of):
    for failure in ranks_of(2).try_run(memory_with_multicast):
        assert "set TORCH_SYMM_MEM_DISABLE_MULTICAST=1" in str(failure.error)
