"""Ranks with different values of LAMPORT_RS_VLLM take the same paths, and groups beside each other do not mix."""

import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_vllm import PACKAGE, PARALLEL_STATE, RELEASES, calls_of, cuda_communicator, fake_vllm, in_vllm, logged
from lamport_rs.vllm_plugin import fused_workspaces, install
from lamport_rs.vllm_plugin.agreement import parts_of
from ranks import Rank
from reference import check_same_bits, random_tensor, rounded_sum
from test_vllm_fused import HIDDEN, the_pass

each_release = pytest.mark.parametrize("release", RELEASES)


def check_path(me: Rank, release: str, *texts: str) -> Any:
    def check(me: Rank, module: Any) -> Any:
        communicator = cuda_communicator(me)
        assert torch.equal(communicator.all_reduce(torch.ones(32)), torch.full((32,), float(me.world_size)))
        kind = type(communicator.ca_comm).__name__
        summed = [what for who, what, *_ in calls_of(module) if what == "custom_all_reduce"]
        # Ranks without the part have no stand-in, and never ask for a workspace.
        return sorted(parts_of(communicator.cpu_group)), kind, summed, the_pass().disabled

    with logged() as lines:
        return in_vllm(me, release, check, LAMPORT_RS_VLLM=texts[me.rank]), lines


@each_release
@pytest.mark.parametrize(
    ("texts", "parts", "with_more"),
    [
        (("all_reduce", "all_reduce"), ["all_reduce"], None),
        (("0", "0"), [], None),
        (("all_reduce,fused", "fused"), ["fused"], "0"),
        (("fused,all_reduce,minimax", "0"), [], "0"),
        (("0", "fused"), [], "1"),
        (("all_reduce", "minimax"), [], "0, 1"),
        (("", "all_reduce"), ["all_reduce"], "0"),
    ],
)
def test_ranks_use_what_all_of_them_choose(ranks_of, release, texts, parts, with_more):
    (first, lines), (second, others) = ranks_of(2).run(check_path, release, *texts)
    kind = "LamportAllreduce" if "all_reduce" in parts else "CustomAllreduce"
    summed = [] if "all_reduce" in parts else ["custom_all_reduce"]
    assert first == second == (parts, kind, summed, "fused" not in parts)
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert warnings == (
        [
            f"WARNING the ranks have different values of LAMPORT_RS_VLLM: ranks {with_more} choose more than all do. "
            f"What all choose is used: {', '.join(parts) or 'nothing'}. Set it alike on every rank"
        ]
        if with_more
        else []
    )
    assert others == []


def check_without_custom(me: Rank, release: str, *texts: str) -> tuple[list[str], bool]:
    def check(me: Rank, module: Any) -> tuple[list[str], bool]:
        sys.modules[PARALLEL_STATE]._ENABLE_CUSTOM_ALL_REDUCE = False
        communicator = cuda_communicator(me)
        assert communicator.ca_comm is None
        assert calls_of(module) == []
        return sorted(parts_of(communicator.cpu_group)), the_pass().disabled

    return in_vllm(me, release, check, LAMPORT_RS_VLLM=texts[me.rank])


@each_release
def test_ranks_agree_with_disable_custom_all_reduce_too(ranks_of, release):
    assert ranks_of(2).run(check_without_custom, release, "fused", "fused,minimax") == [(["fused"], False)] * 2
    assert ranks_of(2).run(check_without_custom, release, "fused", "0") == [([], True)] * 2


def check_groups(me: Rank, release: str) -> list[str]:
    def check(me: Rank, module: Any) -> None:
        owner = sys.modules[f"{PACKAGE}.cuda_communicator"].CudaCommunicator
        made: dict[str, tuple[Any, list[int]]] = {}
        for name, members in [("tp", [[0, 1], [2, 3]]), ("pp", [[0, 2], [1, 3]]), ("dp", [[0, 3], [1, 2]])]:
            for index, ranks in enumerate(members):
                group = dist.new_group(ranks)
                if me.rank in ranks:
                    made[name] = owner(cpu_group=group, device=me.device, unique_name=f"{name}:{index}"), ranks
        calls_of(module)
        for _ in range(3):
            # As many as the pair pleases: the pairs need not keep step.
            for rows in range(1, 3 + me.rank // 2):
                communicator, ranks = made["tp"]
                inputs = [random_tensor((rows, HIDDEN), torch.bfloat16, rank) for rank in ranks]
                check_same_bits(communicator.all_reduce(inputs[ranks.index(me.rank)]), rounded_sum(inputs))
            assert calls_of(module) == []
            for name in ("pp", "dp"):
                assert made[name][0].ca_comm is None
                assert made[name][0].all_reduce(torch.ones(2)).tolist() == [2.0, 2.0]
                assert calls_of(module) == [("nccl", "all_reduce")]

    with logged() as lines:
        in_vllm(me, release, check)
    return lines


@each_release
def test_beside_data_and_pipeline_parallelism_each_tensor_parallel_group_sums_alone(ranks_of, release):
    lines = ranks_of(4).run(check_groups, release)
    assert [[line[:16] for line in each] for each in lines] == [["INFO lamport_rs "], [], ["INFO lamport_rs "], []]
    assert "2 ranks" in lines[0][0]


def check_fused_groups(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        mine, peers = groups[me.rank // 2], [me.rank // 2 * 2, me.rank // 2 * 2 + 1]
        served = [fused_workspaces.fused_workspace(4096, group) for group in (mine, dist.group.WORLD)]
        for workspace, ranks in zip(served, (peers, range(4)), strict=True):
            inputs = [random_tensor((3, HIDDEN), torch.bfloat16, rank) for rank in ranks]
            total = workspace.run(inputs[list(ranks).index(me.rank)], 0)
            check_same_bits(total, rounded_sum(inputs))
        again = fused_workspaces.fused_workspace(1 << 20, mine)
        assert again._held is served[0]._held

    in_vllm(me, release, check)


def test_fused_workspaces_are_by_group(ranks_of):
    ranks_of(4).run(check_fused_groups, RELEASES[0])


def without_module(name: str) -> None:
    del sys.modules[name]


def without_class(name: str) -> None:
    del sys.modules[name].CudaCommunicator


def without_name(name: str) -> None:
    sys.modules[name].CudaCommunicator.__init__ = lambda self, cpu_group, device: None


def without_destroy(name: str) -> None:
    del sys.modules[name].CudaCommunicator.destroy


def check_unknown(me: Rank, release: str, change: Any) -> list[str]:
    with fake_vllm(release) as module, logged() as lines:
        change(f"{PACKAGE}.cuda_communicator")
        install()
        made = module.CustomAllreduce(dist.group.WORLD, me.device)
        assert type(made).__name__ == "CustomAllreduce"
        assert calls_of(module) == [("own", "__init__")]
        assert parts_of(dist.group.WORLD) == set()
    return lines


@each_release
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_module, f"there is no {PACKAGE}.cuda_communicator"),
        (without_class, "has no CudaCommunicator"),
        (without_name, "CudaCommunicator takes no unique_name"),
        (without_destroy, "CudaCommunicator has no destroy"),
    ],
)
def test_where_ranks_cannot_agree_nothing_is_replaced(ranks_of, release, change, reason):
    for lines in ranks_of(2).run(check_unknown, release, change):
        (line,) = lines
        assert line.startswith("WARNING this release of vLLM has no hook for lamport_rs's parts: ")
        assert reason in line
