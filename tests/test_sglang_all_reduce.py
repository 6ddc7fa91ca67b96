"""The plugin's all-reduce in SGLang's groups, with stand-ins for SGLang's modules and ranks as processes."""

import gc
import threading
from typing import Any

import torch
import torch.distributed as dist
from fake_sglang import MIB, V2, calls, in_sglang, logged, make_group, make_groups
from lamport_rs import LamportWorkspace
from ranks import Rank
from reference import DTYPES, check_same_bits, random_tensor, rounded_sum


def kind_of(group: Any) -> str:
    return type(group.ca_comm).__name__


def inputs_of(me: Rank, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    return [random_tensor(shape, dtype, rank) for rank in range(me.world_size)]


def check_sums(me: Rank) -> list[str]:
    def check(me: Rank, _modules: Any) -> None:
        group = make_groups(me)
        assert kind_of(group) == "LamportAllreduce"
        for shape in [(1, 4096), (37, 4096), (1001,), (3, 5, 7)]:
            for dtype in DTYPES:
                inputs = inputs_of(me, shape, dtype)
                mine = inputs[me.rank].clone()
                check_same_bits(group.all_reduce(mine), rounded_sum(inputs))
                check_same_bits(mine, inputs[me.rank])
        inputs = inputs_of(me, (24, 16), torch.bfloat16)
        check_same_bits(group.all_reduce(inputs[me.rank].T), rounded_sum([each.T for each in inputs]))
        assert calls.take() == []

    with logged() as lines:
        in_sglang(me, check)
    return lines


def test_a_group_sums_in_rank_order_and_says_so_once(ranks_of):
    (line,), *others = ranks_of(2).run(check_sums)
    assert line.startswith("INFO lamport_rs ")
    assert "sums in the place of SGLang's CustomAllReduceV2: group tp:" in line
    assert "2 ranks, float32, float16 and bfloat16 tensors of up to 8 MiB" in line
    assert others == [[]]


def check_the_rest(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        group = make_groups(me)
        # SGLang's own takes what it took, and leaves what it left.
        for tensor, expected in [
            (torch.ones(8 * MIB // 4 + 4), ("own", "custom_all_reduce")),
            (torch.ones(16, dtype=torch.int32), ("own", "custom_all_reduce")),
            (torch.ones(17 * MIB // 4), ("nccl", "all_reduce")),
            (torch.ones(3, dtype=torch.int64), ("nccl", "all_reduce")),
        ]:
            total = group.all_reduce(tensor)
            assert calls.take() == [expected]
            assert torch.equal(total, tensor * me.world_size)
        assert torch.equal(group.all_reduce(torch.ones(8 * MIB // 4)), torch.full((8 * MIB // 4,), 2.0))
        assert calls.take() == []

    in_sglang(me, check)


def test_what_is_larger_or_of_another_dtype_goes_on_as_before(ranks_of):
    ranks_of(2).run(check_the_rest)


def check_own_object(me: Rank) -> None:
    def check(me: Rank, modules: Any) -> None:
        group = make_groups(me)
        communicator = group.ca_comm
        # SGLang's other kernels look for the class, and use its memory.
        assert isinstance(communicator, modules[V2].CustomAllReduceV2)
        assert (communicator.obj, communicator.max_size, communicator.max_push_size) == (
            "handle of its memory",
            16 * MIB,
            MIB,
        )
        assert communicator.supports_push(MIB)
        assert not hasattr(communicator, "fused_allreduce_rmsnorm")
        with group.graph_capture():
            assert torch.equal(group.all_reduce(torch.ones(4)), torch.full((4,), 2.0))
        assert calls.take() == [("own", "capture")]
        communicator.close()
        communicator.close()
        assert calls.take() == [("own", "close")]
        assert not communicator.should_custom_ar(torch.ones(4))

    in_sglang(me, check)


def test_all_else_that_sglang_asks_is_answered_by_its_own_object(ranks_of):
    ranks_of(2).run(check_own_object)


def check_without_workspace(me: Rank) -> tuple[list[str], str]:
    def check(me: Rank, _modules: Any) -> str:
        group = make_groups(me)
        assert torch.equal(group.all_reduce(torch.ones(32)), torch.full((32,), 2.0))
        assert calls.take() == [("own", "custom_all_reduce")]
        return kind_of(group)

    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if me.rank == 1 else {}
    with logged() as lines:
        return lines, in_sglang(me, check, **limit)


def test_without_a_workspace_on_one_rank_all_have_sglangs_own(ranks_of):
    first, second = ranks_of(2).run(check_without_workspace)
    assert first[1] == second[1] == "CustomAllReduceV2"
    (line,) = first[0]
    assert line.startswith("WARNING SGLang's own path goes on for all_reduce, because lamport_rs has no workspace: ")
    assert "rank 1" in line
    assert "LAMPORT_RS_MAX_MEMORY is 'much'" in line
    assert second[0] == []


def check_without_own(me: Rank, what: str) -> tuple[list[str], str]:
    def check(me: Rank, modules: Any) -> str:
        def make(self: Any, *_arguments: Any, **_options: Any) -> None:
            self.disabled, self.full_nvlink = what == "is disabled", what != "has no NVLink"

        if me.rank == 1:
            modules[V2].CustomAllReduceV2.__init__ = make
        group = make_groups(me)
        calls.take()
        return kind_of(group)

    with logged() as lines:
        return lines, in_sglang(me, check)


def test_a_group_for_which_sglang_has_no_all_reduce_itself_is_left_alone(ranks_of):
    for world_size, what in [(2, "is disabled"), (3, "has no NVLink")]:
        first, *others = ranks_of(world_size).run(check_without_own, what)
        assert {kind for _lines, kind in (first, *others)} == {"CustomAllReduceV2"}
        (line,) = first[0]
        assert line.startswith("INFO lamport_rs leaves group tp:")
        assert all(lines == [] for lines, _kind in others)
    assert {kind for _lines, kind in ranks_of(2).run(check_without_own, "has no NVLink")} == {"LamportAllreduce"}


def check_own_fails(me: Rank) -> None:
    def check(me: Rank, modules: Any) -> None:
        def fail(*_arguments: Any, **_options: Any) -> None:
            raise RuntimeError("there is no compiler")

        if me.rank == 1:
            modules[V2].CustomAllReduceV2.__init__ = fail
        group = make_groups(me)
        assert kind_of(group) == "LamportAllreduce"
        assert not isinstance(group.ca_comm, modules[V2].CustomAllReduceV2)
        assert not hasattr(group.ca_comm, "obj")
        with group.graph_capture():
            assert torch.equal(group.all_reduce(torch.ones(4)), torch.full((4,), 2.0))
        group.all_reduce(torch.ones(4, dtype=torch.int32))
        assert calls.take() == [("nccl", "all_reduce")]
        group.ca_comm.close()

    in_sglang(me, check)


def test_a_group_sums_where_sglangs_own_all_reduce_could_not_be_made_on_one_rank(ranks_of):
    ranks_of(2).run(check_own_fails)


def check_groups(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        pairs = [[0, 1], [2, 3]]
        tp, attention = make_group("tp", [[0, 1, 2, 3]]), make_group("attention_tp", pairs)
        experts, alone = make_group("moe_ep", pairs, use_custom_allreduce=False), make_group("pp", [[0], [1], [2], [3]])
        elastic = [
            make_group("tp", pairs, torch_distributed_backend="mooncake"),
            make_group("tp", pairs, recovered_rank=True),
            make_group("tp", pairs, rank_offset=4),
        ]
        assert [kind_of(group) for group in (tp, attention)] == ["LamportAllreduce"] * 2
        assert [kind_of(group) for group in (experts, alone)] == ["NoneType"] * 2
        assert [kind_of(group) for group in elastic] == ["CustomAllReduceV2"] * 3
        mine = torch.full((5, 8), 2.0**me.rank)
        assert tp.all_reduce(mine).unique().tolist() == [15.0]
        assert attention.all_reduce(mine).unique().tolist() == [3.0 if me.rank < 2 else 12.0]
        tp.destroy()
        gc.collect()
        assert attention.all_reduce(mine).unique().tolist() == [3.0 if me.rank < 2 else 12.0]

    in_sglang(me, check)


def test_each_group_has_a_workspace_of_its_own_where_sglang_sums_itself(ranks_of):
    ranks_of(4).run(check_groups)


def check_flashinfer(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        served = make_groups(me)
        other = make_group("moe_ep", [[0, 1]], use_custom_allreduce=False)
        for group, expected in [(served, []), (other, [("flashinfer", "all_reduce")])]:
            group.flashinfer_is_ready = True
            group.all_reduce(torch.ones(4, 4))
            assert calls.take() == expected

    in_sglang(me, check)


def test_flashinfer_does_not_come_before_the_workspace(ranks_of):
    ranks_of(2).run(check_flashinfer)


def check_compiled(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        group = make_groups(me)
        group.flashinfer_is_ready = True

        def choose(x: torch.Tensor) -> torch.Tensor:
            # What SGLang asks while a model is compiled; the sum itself is an operator.
            is_left = group.ca_comm is None or group._can_use_flashinfer_allreduce(x)
            return x * 0 if is_left else x + 1

        compiled = torch.compile(choose, backend="eager", fullgraph=True, dynamic=True)
        for rows in (2, 3):
            assert compiled(torch.zeros(rows, 4)).unique().tolist() == [1.0]

    in_sglang(me, check)


def test_a_compiled_model_asks_the_same(ranks_of):
    ranks_of(2).run(check_compiled)


def check_another_thread(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        group = make_groups(me)
        totals: list[torch.Tensor] = []
        for _turn in range(2):
            thread = threading.Thread(target=lambda: totals.append(group.all_reduce(torch.ones(8))))
            thread.start()
            thread.join(30)
            totals.append(group.all_reduce(torch.ones(8)))
        assert torch.equal(torch.stack(totals), torch.full((4, 8), 2.0))

    in_sglang(me, check)


def test_a_model_may_run_in_another_thread_than_it_was_made_in(ranks_of):
    ranks_of(2).run(check_another_thread)


def check_memory(me: Rank, **environment: str) -> int:
    def check(me: Rank, modules: Any) -> int:
        from lamport_rs.sglang_plugin.groups import groups

        modules[V2].CustomAllReduceV2.__init__ = lambda self, group, device: self.__dict__.update(
            disabled=False, group=group, max_size=MIB
        )
        group = make_groups(me)
        assert not group.ca_comm.should_custom_ar(torch.ones(MIB // 4 + 4))
        assert torch.equal(group.all_reduce(torch.ones(MIB // 4)), torch.full((MIB // 4,), 2.0))
        return groups._made[group.cpu_group]["all_reduce"].memory_bytes

    return in_sglang(me, check, **environment)


def check_least_memory(me: Rank) -> int:
    return check_memory(me, LAMPORT_RS_MAX_MEMORY=str(2 * MIB))


def test_a_workspace_is_as_large_as_sglangs_bound_and_the_memory_allow(ranks_of):
    slot = LamportWorkspace.compute_comm_size_for_all_reduce(MIB, 2)
    for memory in ranks_of(2).run(check_memory):
        assert 3 * slot <= memory < 3 * slot + 2 * MIB
    for memory in ranks_of(2).run(check_least_memory):
        assert 2 * MIB - 1024 < memory <= 2 * MIB


def check_destroyed(me: Rank) -> int:
    def check(me: Rank, _modules: Any) -> int:
        from lamport_rs.sglang_plugin.groups import groups

        group = make_groups(me)
        workspace = groups._made[group.cpu_group]["all_reduce"]
        dist.barrier()
        group.destroy()
        gc.collect()
        return workspace._workspace._core is None

    return in_sglang(me, check)


def test_a_group_that_is_taken_down_gives_its_workspace_up(ranks_of):
    assert ranks_of(2).run(check_destroyed) == [True, True]
