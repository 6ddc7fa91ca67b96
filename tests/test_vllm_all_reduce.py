"""The plugin's all-reduce in vLLM's `CudaCommunicator`, with stand-ins for vLLM's modules and ranks as processes."""

import gc
import sys
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_vllm import MODULE, PARALLEL_STATE, RELEASES, calls_of, cuda_communicator, fake_vllm, in_vllm, logged
from lamport_rs import LamportError, LamportWorkspace
from lamport_rs.vllm_plugin import install
from lamport_rs.vllm_plugin.communicator import request_of
from ranks import Rank
from reference import DTYPES, check_same_bits, random_tensor, rounded_sum

MIB = 1 << 20
each_release = pytest.mark.parametrize("release", RELEASES)


def inputs_of(me: Rank, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    return [random_tensor(shape, dtype, rank) for rank in range(me.world_size)]


def check_sums(me: Rank, release: str) -> list[str]:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me)
        assert type(communicator.ca_comm).__name__ == "LamportAllreduce"
        calls_of(module)
        for shape in [(1, 4096), (37, 4096), (1000,), (3, 5, 7)]:
            for dtype in DTYPES:
                inputs = inputs_of(me, shape, dtype)
                mine = inputs[me.rank].clone()
                total = communicator.all_reduce(mine)
                check_same_bits(total, rounded_sum(inputs))
                check_same_bits(mine, inputs[me.rank])
        inputs = inputs_of(me, (24, 16), torch.bfloat16)
        check_same_bits(communicator.all_reduce(inputs[me.rank].T), rounded_sum([each.T for each in inputs]))
        assert calls_of(module) == []
        communicator.destroy()

    with logged() as lines:
        in_vllm(me, release, check)
    return lines


@each_release
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_tensor_parallel_group_sums_in_rank_order_and_says_so_once(ranks_of, release, world_size):
    lines, *others = ranks_of(world_size).run(check_sums, release)
    (line,) = lines
    assert line.startswith("INFO lamport_rs ")
    assert f"{world_size} ranks, float32, float16 and bfloat16 tensors of less than 8 MiB" in line
    assert others == [[]] * (world_size - 1)


def check_the_rest(me: Rank, release: str) -> None:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me)
        calls_of(module)
        for tensor in [torch.ones(8 * MIB // 4), torch.ones(16, dtype=torch.int32), torch.ones(0)]:
            total = communicator.all_reduce(tensor)
            assert calls_of(module) == [("nccl", "all_reduce")]
            assert torch.equal(total, tensor * me.world_size)
        assert communicator.all_reduce(torch.ones(8 * MIB // 4 - 1)).sum() == me.world_size * (8 * MIB // 4 - 1)
        assert calls_of(module) == []

    in_vllm(me, release, check)


@each_release
def test_what_a_workspace_does_not_take_goes_on_as_before(ranks_of, release):
    ranks_of(2).run(check_the_rest, release)


def check_fallback(me: Rank, release: str) -> tuple[list[str], list[tuple[str, str]]]:
    def check(me: Rank, module: Any) -> list[tuple[str, str]]:
        communicator = cuda_communicator(me)
        assert type(communicator.ca_comm).__name__ == "CustomAllreduce"
        assert torch.equal(communicator.all_reduce(torch.ones(32)), torch.full((32,), 2.0))
        return calls_of(module)

    # One rank alone has no workspace.
    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if me.rank == 1 else {}
    with logged() as lines:
        return lines, in_vllm(me, release, check, **limit)


@each_release
def test_without_a_workspace_on_one_rank_all_have_vllms_own(ranks_of, release):
    first, second = ranks_of(2).run(check_fallback, release)
    assert first[1] == second[1] == [("own", "__init__"), ("own", "custom_all_reduce")]
    (line,) = first[0]
    assert line.startswith("WARNING vLLM's own path goes on for all_reduce, because lamport_rs has no workspace: ")
    assert "rank 1" in line
    assert "LAMPORT_RS_MAX_MEMORY is 'much'" in line
    assert second[0] == []


def check_own_collectives(me: Rank, release: str) -> None:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me).ca_comm
        assert calls_of(module) == [("own", "__init__")]
        mine = torch.full((2, 4), float(me.rank))
        assert torch.equal(communicator.custom_all_gather(mine), torch.tensor([0.0, 0, 1, 1])[:, None].expand(4, 4))
        assert torch.equal(communicator.custom_reduce_scatter(mine), torch.ones(1, 4))
        assert communicator.fully_connected is True
        assert communicator.mnnvl_lamport_ag_multicast_ptr == 4096
        with communicator.capture():
            assert torch.equal(communicator.custom_all_reduce(mine), torch.ones(2, 4))
        communicator.close()
        communicator.close()
        assert calls_of(module) == [("own", "capture"), ("own", "close")]
        assert communicator.custom_all_reduce(mine) is None

    in_vllm(me, release, check)


def test_gathers_and_scatters_stay_vllms_own(ranks_of):
    ranks_of(2).run(check_own_collectives, "0.33.0")


def check_nothing_kept(me: Rank, release: str) -> None:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me)
        with communicator.ca_comm.capture():
            assert torch.equal(communicator.all_reduce(torch.ones(4)), torch.full((4,), 2.0))
        assert calls_of(module) == []
        assert communicator.ca_comm.fully_connected is False
        with pytest.raises(AttributeError, match="custom_all_gather"):
            _ = communicator.ca_comm.custom_all_gather
        workspace = communicator.ca_comm._workspace.here()
        communicator.destroy()
        gc.collect()
        with pytest.raises(LamportError, match="cleaned up"):
            workspace.synchronize()

    in_vllm(me, release, check)


def test_a_release_that_only_sums_keeps_nothing_of_vllms_and_gives_the_workspace_up(ranks_of):
    ranks_of(2).run(check_nothing_kept, "0.26.0")


@each_release
def test_static_methods_of_vllms_class_are_still_there(release):
    with fake_vllm(release) as module:
        install()
        assert module.CustomAllreduce.create_shared_buffer(48) == [48]


def check_threads(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        communicator = cuda_communicator(me)
        totals: list[torch.Tensor] = []
        for _ in range(2):
            thread = threading.Thread(target=lambda: totals.append(communicator.all_reduce(torch.ones(8))))
            thread.start()
            thread.join(30)
            totals.append(communicator.all_reduce(torch.ones(8)))
        assert [total.tolist() for total in totals] == [[2.0] * 8] * 4

    in_vllm(me, release, check)


def test_a_model_may_be_made_in_one_thread_and_run_in_another(ranks_of):
    ranks_of(2).run(check_threads, "0.26.0")


def check_flashinfer(me: Rank, release: str) -> tuple[list[tuple[str, str]], list[str]]:
    def check(me: Rank, module: Any) -> list[tuple[str, str]]:
        communicator = cuda_communicator(me)
        calls_of(module)
        for rows in (4, 4096):
            assert torch.equal(communicator.all_reduce(torch.ones(rows, 512)), torch.full((rows, 512), 2.0))
        return calls_of(module)

    with logged() as lines:
        return in_vllm(me, release, check), lines


def ask_for_flashinfer(me: Rank, release: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # `fake_vllm` reads the variable when it makes the modules, as vLLM does when it makes a communicator.
        patch.setenv("VLLM_ALLREDUCE_USE_FLASHINFER", "1")
        return check_flashinfer(me, release)


def test_flashinfer_has_its_turn_after_the_workspace_where_vllm_tries_it_by_default(ranks_of):
    for calls, _lines in ranks_of(2).run(check_flashinfer, "0.33.0"):
        assert calls == [("flashinfer", "all_reduce")]  # The larger tensor.
    for calls, _lines in ranks_of(2).run(check_flashinfer, "0.26.0"):
        assert calls == [("nccl", "all_reduce")]


@each_release
def test_flashinfer_has_its_turn_first_where_the_user_asks_for_it(ranks_of, release):
    (calls, lines), _other = ranks_of(2).run(ask_for_flashinfer, release)
    assert calls == [("flashinfer", "all_reduce")] * 2
    assert "what FlashInfer takes is FlashInfer's" in lines[0]


def check_batch_invariance(me: Rank, release: str) -> None:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me)
        calls_of(module)
        inputs = inputs_of(me, (1100, 4096), torch.bfloat16)
        whole = communicator.all_reduce(inputs[me.rank])
        assert inputs[0].nbytes > 8 * MIB
        for first, last in [(0, 1), (17, 19), (600, 1100)]:
            check_same_bits(communicator.all_reduce(inputs[me.rank][first:last].clone()), whole[first:last])
        check_same_bits(whole, rounded_sum(inputs))
        assert calls_of(module) == []

    in_vllm(me, release, check, VLLM_BATCH_INVARIANT="1")


@each_release
def test_with_batch_invariance_tensors_of_all_sizes_have_the_same_bits(ranks_of, release):
    ranks_of(3).run(check_batch_invariance, release)


def check_batch_invariance_without(me: Rank, release: str, part: str, disabled: bool) -> str:
    def check(me: Rank, _module: Any) -> str:
        sys.modules[PARALLEL_STATE]._ENABLE_CUSTOM_ALL_REDUCE = not disabled
        return type(cuda_communicator(me).ca_comm).__name__

    return in_vllm(me, release, check, VLLM_BATCH_INVARIANT="1", LAMPORT_RS_VLLM=part)


def test_with_batch_invariance_too_the_part_and_the_user_decide(ranks_of):
    for release, part, disabled, expected in [
        ("0.26.0", "fused", False, "NoneType"),
        ("0.26.0", "0", False, "NoneType"),
        ("0.33.0", "0", False, "CustomAllreduce"),
        # There it is the user who has switched it off. In 0.26.0 vLLM does, and who did cannot be told.
        ("0.33.0", "all_reduce", True, "NoneType"),
    ]:
        found = ranks_of(2).run(check_batch_invariance_without, release, part, disabled)
        assert found == [expected] * 2, (release, part, disabled)


def check_links(me: Rank, release: str, connected: bool) -> tuple[str, list[str], list[Any]]:
    def check(me: Rank, module: Any) -> tuple[str, list[Any]]:
        platform = sys.modules["vllm.platforms"].current_platform
        platform.cuda, platform.fully_connected = True, connected
        patch.setattr(torch.cuda, "current_device", lambda: 2 + me.rank)
        return type(cuda_communicator(me).ca_comm).__name__, [each for each in calls_of(module) if each[0] != "own"]

    with pytest.MonkeyPatch.context() as patch, logged() as lines:
        kind, calls = in_vllm(me, release, check)
    return kind, lines, calls


@each_release
def test_more_than_two_gpus_without_nvlink_are_left_to_vllm_as_vllm_does(ranks_of, release):
    for connected, kind in [(True, "LamportAllreduce"), (False, "CustomAllreduce")]:
        found = ranks_of(3).run(check_links, release, connected)
        assert [each[0] for each in found] == [kind] * 3
        # The GPUs by their physical numbers, on every rank.
        assert all(each[2] == [("platform", "is_fully_connected", 6, 7, 8)] for each in found)
        assert [("NVLink does not join all of the GPUs 6, 7, 8" in line) for line in found[0][1]] == [not connected]
        assert [each[1] for each in found[1:]] == [[], []]
    for connected in (True, False):
        found = ranks_of(2).run(check_links, release, connected)
        assert [each[0] for each in found] == ["LamportAllreduce"] * 2
        assert all(each[2] == [] for each in found)


def check_suspension(me: Rank, release: str) -> None:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me)
        for _ in range(2):
            assert torch.equal(communicator.all_reduce(torch.ones(4)), torch.full((4,), 2.0))
            communicator.suspend()
            communicator.resume()
        assert [each for each in calls_of(module) if each[0] == "vllm"] == [("vllm", "suspend"), ("vllm", "resume")] * 2
        assert torch.equal(communicator.all_reduce(torch.ones(4)), torch.full((4,), 2.0))

    in_vllm(me, release, check)


def test_a_workspace_stays_through_suspend_and_resume(ranks_of):
    ranks_of(2).run(check_suspension, "0.33.0")


def check_checkpoint(me: Rank, release: str) -> None:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me)
        with pytest.raises(LamportError, match=r"cannot be checkpointed.*LAMPORT_RS_VLLM=0"):
            communicator.checkpoint_prepare()
        communicator.ca_comm.close()
        communicator.destroy()
        gc.collect()
        calls_of(module)
        communicator.checkpoint_prepare()
        assert calls_of(module) == [("vllm", "checkpoint_prepare")]

    in_vllm(me, release, check)


def test_a_checkpoint_is_refused_while_there_is_a_workspace(ranks_of):
    ranks_of(2).run(check_checkpoint, "0.33.0")


@each_release
def test_torchs_symmetric_memory_has_what_vllms_table_says(monkeypatch, release):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    with fake_vllm(release) as module:
        for world_size, expected in [(2, 8 * MIB), (8, MIB // 4), (5, 8 * MIB)]:
            monkeypatch.setattr(dist, "get_world_size", lambda _group, size=world_size: size)
            for enabled in (True, False):
                options = {"group": "group", "device": 3, "symm_mem_enabled": enabled}
                request = request_of(module.CustomAllreduce, **options)
                assert request.max_size == (expected if enabled else 8 * MIB)
                assert request.device == torch.device("cuda", 3)
        assert request_of(module.CustomAllreduce, "group", "cpu", 4096).max_size == 4096


def check_small_bound(me: Rank, release: str, **environment: str) -> int:
    def check(me: Rank, module: Any) -> int:
        communicator = module.CustomAllreduce(dist.group.WORLD, "cpu", MIB)
        assert communicator.should_custom_ar(torch.ones(MIB // 4 - 1))
        assert not communicator.should_custom_ar(torch.ones(MIB // 4))
        ones = torch.ones(MIB // 4 - 1)
        assert torch.equal(communicator.custom_all_reduce(ones), 2 * ones)
        return communicator._workspace.memory_bytes

    return in_vllm(me, release, check, **environment)


def check_least_memory(me: Rank, release: str) -> int:
    return check_small_bound(me, release, LAMPORT_RS_MAX_MEMORY=str(2 * MIB))


@each_release
def test_a_workspace_is_as_large_as_vllms_bound_and_the_memory_allow(ranks_of, release):
    slot = LamportWorkspace.compute_comm_size_for_all_reduce(MIB, 2)
    for memory in ranks_of(2).run(check_small_bound, release):
        assert 3 * slot <= memory < 3 * slot + 2 * MIB
    for memory in ranks_of(2).run(check_least_memory, release):
        assert 2 * MIB - 1024 < memory <= 2 * MIB


def check_alone(me: Rank, release: str) -> None:
    def check(me: Rank, module: Any) -> None:
        alone = [dist.new_group([rank]) for rank in range(me.world_size)][me.rank]
        assert type(module.CustomAllreduce(alone, "cpu")).__name__ == "CustomAllreduce"

    with logged() as lines:
        in_vllm(me, release, check)
    assert lines == []


def test_a_group_of_one_is_vllms(ranks_of):
    ranks_of(2).run(check_alone, "0.33.0")


def test_the_module_is_the_one_that_the_plugin_names():
    from lamport_rs.vllm_plugin import all_reduce

    assert all_reduce.MODULE == MODULE
