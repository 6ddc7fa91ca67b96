"""The plugin's parts on GPUs, eager and in graphs; vLLM's modules are stand-ins."""

import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_vllm import MODULE, RELEASES, calls_of, cuda_communicator, in_vllm, logged
from lamport_rs.vllm_plugin import fused_workspaces
from minimax_rows import EPS, expected_rows, random_rows
from ranks import Rank
from reference import (
    DTYPES,
    check_rounding,
    check_same_bits,
    random_tensor,
    rms_norm_of_rows,
    rounded_sum,
    rounded_sum_with,
)
from test_vllm_fused import TOKENS, check_quantised_patterns, the_pass
from test_vllm_minimax import norms_of, notes

SHAPES = [(1, 4096), (7, 4096), (128, 4096), (1000,)]


def inputs_of(me: Rank, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    return [random_tensor(shape, dtype, seed, rank).to(me.device) for rank in range(me.world_size)]


def sum_eagerly_and_in_graphs(me: Rank, release: str) -> list[str]:
    def check(me: Rank, module: Any) -> None:
        communicator = cuda_communicator(me)
        assert type(communicator.ca_comm).__name__ == "LamportAllreduce"
        for shape in SHAPES:
            for dtype in DTYPES:
                inputs = inputs_of(me, shape, dtype, 0)
                static = inputs[me.rank].clone()
                check_same_bits(communicator.all_reduce(static), rounded_sum(inputs))
                graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
                with communicator.ca_comm.capture(), torch.cuda.graph(graph, stream=side):
                    total = communicator.all_reduce(static)
                for seed in range(1, 4):
                    inputs = inputs_of(me, shape, dtype, seed)
                    static.copy_(inputs[me.rank])
                    graph.replay()
                    check_same_bits(total, rounded_sum(inputs))
        assert ("own", "custom_all_reduce") not in calls_of(module)
        torch.cuda.synchronize()
        communicator.ca_comm.close()

    with logged() as lines:
        in_vllm(me, release, check)
    return lines


@pytest.mark.gpu(2)
@pytest.mark.parametrize("release", RELEASES)
def test_a_tensor_parallel_group_sums_eagerly_and_in_graphs(ranks_of, release):
    first, second = ranks_of(2).run(sum_eagerly_and_in_graphs, release)
    assert [line.startswith("INFO lamport_rs ") for line in first] == [True]
    assert second == []


def run_in_a_second_thread(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        communicator = cuda_communicator(me)
        inputs = inputs_of(me, (16, 4096), torch.bfloat16, 0)
        totals: list[torch.Tensor] = []

        def run() -> None:
            torch.cuda.set_device(me.device)
            totals.append(communicator.all_reduce(inputs[me.rank]))
            torch.cuda.synchronize()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
        totals.append(communicator.all_reduce(inputs[me.rank]))
        for total in totals:
            check_same_bits(total, rounded_sum(inputs))
        assert len(totals) == 2
        torch.cuda.synchronize()
        communicator.ca_comm.close()

    in_vllm(me, release, check)


@pytest.mark.gpu(2)
def test_a_model_may_run_in_another_thread_than_it_was_made_in(ranks_of):
    ranks_of(2).run(run_in_a_second_thread, RELEASES[-1])


def bound_with_symmetric_memory(me: Rank, release: str) -> int:
    def check(me: Rank, module: Any) -> int:
        capability = ".".join(map(str, torch.cuda.get_device_capability(me.device)))
        sys.modules[MODULE].CUSTOM_ALL_REDUCE_MAX_SIZES = {capability: {me.world_size: 1 << 20}}
        group = cuda_communicator(me).cpu_group
        communicator = module.CustomAllreduce(group=group, device=me.device, symm_mem_enabled=True)
        return communicator.max_size

    return in_vllm(me, release, check)


@pytest.mark.gpu(2)
@pytest.mark.parametrize("release", RELEASES)
def test_symmetric_memorys_bound_is_that_of_the_gpu(ranks_of, release):
    assert ranks_of(2).run(bound_with_symmetric_memory, release) == [1 << 20] * 2


def captured(run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of a call that has run before, and what the call returned."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        results = run()
    return graph, results


def fuse_eagerly_and_in_graphs(me: Rank, release: str, hidden: int) -> list[str]:
    """vLLM's operator as its pass calls it: in place, and with an output for the norm; Gemma's weights too."""

    def check(me: Rank, _module: Any) -> None:
        communicator = cuda_communicator(me)
        assert not the_pass(hidden_size=hidden).disabled
        module = importlib.import_module(fused_workspaces.FUSION_PASS)
        for rows, dtype, bias, separate in [
            (1, torch.bfloat16, 0.0, False),
            (7, torch.bfloat16, 1.0, True),
            (128, torch.float16, 0.0, True),
            (600, torch.bfloat16, 1.0, False),
        ]:
            weight = random_tensor((hidden,), dtype, 98).to(me.device)
            mine = torch.empty(rows, hidden, dtype=dtype, device=me.device)
            residual = torch.empty_like(mine)
            norm_out = torch.empty_like(mine) if separate else None
            options = {"rms_eps": EPS, "launch_with_pdl": True, "fp32_acc": True, "max_token_num": TOKENS}
            options |= {"world_size": me.world_size, "pattern_code": 1, "weight_bias": bias, "norm_out": norm_out}

            def fill(seed: int) -> torch.Tensor:
                inputs = inputs_of(me, (rows, hidden), dtype, seed)  # noqa: B023
                mine.copy_(inputs[me.rank])  # noqa: B023
                residual.copy_(random_tensor((rows, hidden), dtype, seed, 99))  # noqa: B023
                return rounded_sum_with(residual.clone(), inputs)  # noqa: B023

            def run() -> None:
                module.flashinfer_trtllm_fused_allreduce_norm(mine, residual, weight, **options)  # noqa: B023

            def check_outputs(total: torch.Tensor) -> None:
                summed, normed = (mine, norm_out) if separate else (residual, mine)  # noqa: B023
                check_same_bits(summed, total)
                check_rounding(normed, rms_norm_of_rows(total, weight, EPS, bias))  # noqa: B023

            total = fill(0)
            run()
            check_outputs(total)
            graph, _ = captured(run)
            for seed in range(1, 4):
                total = fill(seed)
                graph.replay()
                check_outputs(total)
            torch.cuda.synchronize()
        communicator.destroy()

    with logged() as lines:
        in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")
    return lines


@pytest.mark.gpu(2)
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("hidden", [4096, 7168])
def test_fused_norms_run_eagerly_and_in_graphs(ranks_of, release, hidden):
    first, second = ranks_of(2).run(fuse_eagerly_and_in_graphs, release, hidden)
    assert [line.startswith("INFO lamport_rs serves fused: 2 ranks, ") for line in first] == [True]
    assert second == []


@pytest.mark.gpu(2)
@pytest.mark.parametrize("release", RELEASES)
def test_norms_are_quantised(ranks_of, release):
    ranks_of(2).run(check_quantised_patterns, release)


def normalise_eagerly_and_in_graphs(me: Rank, release: str) -> None:
    """MiniMax's layer with the widths of MiniMax-M2 on two GPUs."""

    def check(me: Rank, _module: Any) -> None:
        communicator = cuda_communicator(me)
        q_size, kv_size = 24 * 128, 4 * 128
        norms = norms_of(me, q_size, kv_size)
        assert norms[0].workspace.device == me.device
        for tokens in (1, 37, 2048):
            qkv = torch.empty(tokens, q_size + 2 * kv_size, dtype=torch.bfloat16, device=me.device)
            layer = type(norms[0])

            def fill(seed: int) -> list[torch.Tensor]:
                qkv.copy_(random_rows(me, qkv.shape, qkv.dtype, seed, me.rank))  # noqa: B023
                columns = qkv.split([q_size, kv_size, kv_size], -1)  # noqa: B023
                return [expected_rows(me, rows, norm.weight, EPS) for rows, norm in zip(columns, norms, strict=False)]

            def run() -> Any:
                return layer.forward_qkv(*norms, qkv, q_size, kv_size)  # noqa: B023

            expected = fill(0)
            for found, exact in zip(run(), expected, strict=False):
                check_rounding(found, exact)
            graph, outputs = captured(run)
            for seed in range(1, 4):
                expected = fill(seed)
                graph.replay()
                for found, exact in zip(outputs, expected, strict=False):
                    check_rounding(found, exact)
            torch.cuda.synchronize()
        assert notes() == []
        communicator.destroy()

    in_vllm(me, release, check, LAMPORT_RS_VLLM="minimax")


@pytest.mark.gpu(2)
@pytest.mark.parametrize("release", RELEASES)
def test_minimaxs_norms_run_eagerly_and_in_graphs(ranks_of, release):
    ranks_of(2).run(normalise_eagerly_and_in_graphs, release)


def run_parts_beside_each_other(me: Rank, release: str) -> None:
    """All three parts, each with a workspace of its own, taking turns in one graph."""

    def check(me: Rank, _module: Any) -> None:
        communicator = cuda_communicator(me)
        the_pass(hidden_size=4096)
        operator = importlib.import_module(fused_workspaces.FUSION_PASS).flashinfer_trtllm_fused_allreduce_norm
        norms = norms_of(me, 1024, 256)
        rows = torch.empty(8, 4096, dtype=torch.bfloat16, device=me.device)
        residual = torch.zeros_like(rows)
        weight = torch.ones(4096, dtype=torch.bfloat16, device=me.device)
        qkv = random_rows(me, (8, 1536), torch.bfloat16, me.rank)
        exact = expected_rows(me, qkv[:, :1024], norms[0].weight, EPS)
        options = {"rms_eps": EPS, "launch_with_pdl": True, "fp32_acc": True, "max_token_num": TOKENS}
        options |= {"world_size": me.world_size, "pattern_code": 1}

        def run() -> Any:
            total = communicator.all_reduce(rows)
            q = type(norms[0]).forward_qkv(*norms, qkv, 1024, 256)[0]
            summed = rows.clone()
            operator(summed, residual, weight, norm_out=torch.empty_like(summed), **options)
            return total, q, summed, communicator.all_reduce(summed)

        graph, outputs = captured(run)
        for seed in range(8):
            inputs = inputs_of(me, (8, 4096), torch.bfloat16, seed)
            rows.copy_(inputs[me.rank])
            graph.replay()
            check_same_bits(outputs[0], rounded_sum(inputs))
            check_rounding(outputs[1], exact)
            check_same_bits(outputs[2], rounded_sum(inputs))
            check_same_bits(outputs[3], rounded_sum([rounded_sum(inputs)] * me.world_size))
        torch.cuda.synchronize()
        communicator.ca_comm.close()
        communicator.destroy()

    in_vllm(me, release, check)


@pytest.mark.gpu(2)
@pytest.mark.parametrize("release", RELEASES)
def test_the_parts_run_beside_each_other(ranks_of, release):
    ranks_of(2).run(run_parts_beside_each_other, release)
