"""FlashInfer in the benchmark: what it chooses by size, and what its kernels are given. Without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lamport_rs.command_line.bench.cases import all_reduce_case, rows_case
from lamport_rs.command_line.bench.implementations import flashinfer, vllm
from lamport_rs.command_line.bench.member import UnavailableError
from lamport_rs.command_line.bench.problems import EPSILON, pose
from peers_on_the_host import KIB, MIB, norm_into, peers_on_the_host, solve, sum_into
from ranks import Rank


def test_flashinfer_chooses_by_the_limits_of_its_release():
    limits = {2: 128 * MIB, 4: 8 * MIB}
    for ranks, most in limits.items():
        assert flashinfer.trtllm_in_one_shot(most, ranks)
        assert not flashinfer.trtllm_in_one_shot(most + 16, ranks)
    with pytest.raises(UnavailableError, match="FlashInfer chooses for 2, 4, 8 ranks, and there are 3"):
        flashinfer.trtllm_in_one_shot(16, 3)
    assert flashinfer.mnnvl_in_one_shot(512 * KIB, 2)
    assert not flashinfer.mnnvl_in_one_shot(512 * KIB + 16, 2)


TRTLLM = """input world_size rank tokens hidden workspace dependent_launch one_shot trigger_at_end float32_sums pattern
out residual residual_out norm_out quant_out scale_out weight epsilon scale_factor layout_code group_size weight_bias"""
MNNVL = """input multicast buffers own flags world_size rank norm dependent_launch one_shot out residual_out residual
weight epsilon weight_bias quant_type quant_out sf_out output_scale layout_code"""
"""The arguments of the release's functions, in order."""


def by_trtllm(me: Rank) -> None:
    one_shot = []

    def trtllm_allreduce_fusion(*arguments):
        found = dict(zip(TRTLLM.split(), arguments, strict=True))
        assert (found["world_size"], found["rank"]) == (me.world_size, me.rank)
        assert (found["tokens"], found["hidden"]) == found["input"].shape
        assert found["dependent_launch"]
        assert found["trigger_at_end"]
        assert found["float32_sums"]
        # A buffer, flags and slots of every rank, and what the kernels keep.
        assert (found["workspace"].dtype, found["workspace"].shape) == (torch.int64, (3 * me.world_size + 1,))
        one_shot.append(found["one_shot"])
        unused = ["quant_out", "scale_out", "scale_factor", "layout_code", "group_size", "weight_bias"]
        if found["pattern"] == 1:
            assert (found["out"], found["epsilon"]) == (None, EPSILON)
            norm_into(found["norm_out"], found["residual_out"], found, found["weight"])
        else:
            assert found["pattern"] == 0
            unused += ["residual", "residual_out", "norm_out", "weight", "epsilon"]
            sum_into(found["out"], found["input"])
        assert all(found[name] is None for name in unused)

    library = SimpleNamespace(trtllm_allreduce_fusion=trtllm_allreduce_fusion)
    with peers_on_the_host(me, library) as member:
        sums = [all_reduce_case(size, torch.bfloat16) for size in (512, 64 * KIB)]
        solve(flashinfer.FlashInferTrtllm, sums, member)
        solve(flashinfer.FlashInferTrtllm, [rows_case("all_reduce_rms_norm", rows) for rows in (1, 8)], member)
        assert all(one_shot)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flashinfer, "TRTLLM_ONE_SHOT_MIB", {me.world_size: 0})
            solve(flashinfer.FlashInferTrtllm, sums[1:], member)
            assert not one_shot[-1]
            made = flashinfer.FlashInferTrtllm(member, sums)
            with pytest.raises(UnavailableError, match="takes more rows than ranks, and there are 1"):
                made.prepare(pose(sums[0], member))
        slots = made._buffers[2]
        assert (slots.own.view(torch.int16) == -0x8000).all(), "a slot has other words than negative zero"
        assert made._flags.tolist() == [0, 0, 0, slots.own.numel() // 3, 0]
        workspace = made._workspace.tolist()
        own = [buffer.own.data_ptr() for buffer in made._buffers]
        assert workspace[me.rank :: me.world_size][:3] == own
        assert workspace[-1] == made._flags.data_ptr()


def test_flashinfers_fused_kernels_are_given_what_its_python_gives_them(ranks_of):
    ranks_of(2).run(by_trtllm)


def by_mnnvl(me: Rank) -> None:
    def trtllm_mnnvl_allreduce_fusion(*arguments):
        found = dict(zip(MNNVL.split(), arguments, strict=True))
        assert (found["world_size"], found["rank"], found["quant_type"]) == (2, me.rank, 0)
        assert found["dependent_launch"]
        assert found["one_shot"]
        assert found["multicast"] != found["own"], "the one store must reach the peer"
        assert found["flags"].tolist()[:3] == [0, 2, found["flags"][2]]
        assert len(found["flags"]) == 9
        unused = ["weight_bias", "quant_out", "sf_out", "output_scale", "layout_code"]
        if found["norm"]:
            assert found["epsilon"] == EPSILON
            norm_into(found["out"], found["residual_out"], found, found["weight"])
        else:
            unused += ["residual", "residual_out", "weight", "epsilon"]
            sum_into(found["out"], found["input"])
        assert all(found[name] is None for name in unused)

    library = SimpleNamespace(trtllm_mnnvl_allreduce_fusion=trtllm_mnnvl_allreduce_fusion)
    with peers_on_the_host(me, library) as member:
        solve(flashinfer.FlashInferMnnvl, [all_reduce_case(size, torch.bfloat16) for size in (512, 64 * KIB)], member)
        solve(flashinfer.FlashInferMnnvl, [rows_case("all_reduce_rms_norm", rows) for rows in (1, 8)], member)
        made = flashinfer.FlashInferMnnvl(member, [all_reduce_case(MIB, torch.bfloat16)])
        assert (made._memory.own.view(torch.int32) == -0x80000000).all()
        assert made._flags[2] == 2 * MIB
        with pytest.raises(UnavailableError, match="two shots, which take NVLink multicast"):
            made.prepare(pose(all_reduce_case(MIB, torch.bfloat16), member))


def test_flashinfers_kernels_for_multicast_store_to_the_one_peer(ranks_of):
    ranks_of(2).run(by_mnnvl)


def mnnvl_of_four(me: Rank) -> None:
    with peers_on_the_host(me, None) as member:
        flashinfer.FlashInferMnnvl(member, [all_reduce_case(512, torch.bfloat16)])


def test_flashinfers_kernels_for_multicast_are_for_two_ranks(ranks_of):
    for failure in ranks_of(4).try_run(mnnvl_of_four):
        assert isinstance(failure.error, UnavailableError)
        assert "without it the one store reaches one peer" in str(failure.error)


def by_vllm(me: Rank) -> list[object]:
    calls = []

    def all_reduce(handle, tensor, out, staging, size, blocks):
        assert (handle, blocks) == (11, 36)
        assert staging == registered[-1][1][me.rank]
        assert size == 64 * KIB
        sum_into(out, tensor)

    def init_custom_ar(signals, addresses, rank, full_nvlink):
        assert (len(signals), addresses.numel(), rank, full_nvlink) == (me.world_size, 8 * MIB, me.rank, True)
        return 11

    registered: list[tuple[int, list[int]]] = []
    library = SimpleNamespace(
        meta_size=lambda: 100,
        init_custom_ar=init_custom_ar,
        register_buffer=lambda handle, staging: registered.append((handle, staging)),
        all_reduce=all_reduce,
        get_graph_buffer_ipc_meta=lambda _handle: ([me.rank, 5], [me.rank]),
        register_graph_buffers=lambda *found: calls.append(found),
        dispose=lambda handle: calls.append(handle),
    )
    with peers_on_the_host(me, library) as member:
        cases = [all_reduce_case(size, torch.bfloat16) for size in (512, 64 * KIB)]
        made = vllm.VllmCustom(member, cases)
        with made.capturing():
            pass
        made.close()
        solve(vllm.VllmCustom, cases, member)
    return calls


def test_vllms_kernel_is_told_the_addresses_of_a_graph(ranks_of):
    for calls in ranks_of(2).run(by_vllm):
        assert calls == [(11, [[0, 5], [1, 5]], [[0], [1]]), 11, 11]
