"""The plugin for SGLang on GPUs, eager, in graphs and compiled; SGLang's modules are stand-ins."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_sglang import COMM_FUSION, EPS, EXIT, MODEL_LOADER, Norm, calls, in_sglang, logged, make_groups
from ranks import Rank
from reference import (
    DTYPES,
    check_rounding,
    check_same_bits,
    mean_of_squares,
    random_tensor,
    rms_norm,
    rms_norm_of_rows,
    rounded_sum,
    rounded_sum_with,
)
from test_sglang_norms import check_experts

WIDTH = 4096


def inputs_of(me: Rank, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    return [random_tensor(shape, dtype, seed, rank).to(me.device) for rank in range(me.world_size)]


def captured(run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of `run`, and what it returned while it was captured."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=side):
        return graph, run()


def sum_eagerly_and_in_graphs(me: Rank) -> list[str]:
    def check(me: Rank, _modules: Any) -> None:
        group = make_groups(me)
        assert type(group.ca_comm).__name__ == "LamportAllreduce"
        for shape in [(1, WIDTH), (7, WIDTH), (128, WIDTH), (1001,)]:
            for dtype in DTYPES:
                inputs = inputs_of(me, shape, dtype, 0)
                static = inputs[me.rank].clone()
                check_same_bits(group.all_reduce(static), rounded_sum(inputs))
                with group.graph_capture():
                    graph, total = captured(lambda static=static: group.all_reduce(static))
                for seed in range(1, 4):
                    inputs = inputs_of(me, shape, dtype, seed)
                    static.copy_(inputs[me.rank])
                    graph.replay()
                    check_same_bits(total, rounded_sum(inputs))
        assert ("own", "custom_all_reduce") not in calls.take()
        torch.cuda.synchronize()
        group.ca_comm.close()

    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG="all_reduce")
    return lines


@pytest.mark.gpu(2)
def test_a_group_sums_eagerly_and_in_graphs(ranks_of):
    first, second = ranks_of(2).run(sum_eagerly_and_in_graphs)
    assert [line.startswith("INFO lamport_rs ") for line in first] == [True]
    assert second == []


def run_in_a_second_thread(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        group = make_groups(me)
        inputs = inputs_of(me, (16, WIDTH), torch.bfloat16, 0)
        totals: list[torch.Tensor] = []

        def run() -> None:
            torch.cuda.set_device(me.device)
            totals.append(group.all_reduce(inputs[me.rank]))
            torch.cuda.synchronize()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
        totals.append(group.all_reduce(inputs[me.rank]))
        assert len(totals) == 2
        for total in totals:
            check_same_bits(total, rounded_sum(inputs))
        torch.cuda.synchronize()
        group.ca_comm.close()

    in_sglang(me, check)


@pytest.mark.gpu(2)
def test_a_model_may_run_in_another_thread_than_it_was_made_in(ranks_of):
    ranks_of(2).run(run_in_a_second_thread)


def check_fused(me: Rank, norm: Norm, inputs: list[torch.Tensor], residual: torch.Tensor, found: Any) -> None:
    check_same_bits(found[1], rounded_sum_with(residual, inputs))
    check_rounding(found[0], rms_norm_of_rows(found[1], norm.weight, EPS))
    assert calls.take() == []


def fuse_eagerly_in_graphs_and_compiled(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        fusion = sys.modules[COMM_FUSION]
        fusion.pre_initialize_workspaces(max_token_num=2048, hidden_dim=WIDTH, dtype=torch.bfloat16)
        fuse, applies = fusion.flashinfer_allreduce_residual_rmsnorm, sys.modules[EXIT].flashinfer_ar_fusion_applies
        for dtype in DTYPES:
            norm = Norm(random_tensor((WIDTH,), dtype, 5).to(me.device))
            for rows in (1, 33, 512):
                residual = random_tensor((rows, WIDTH), dtype, 99).to(me.device)
                inputs = inputs_of(me, (rows, WIDTH), dtype, 0)
                static = inputs[me.rank].clone()
                check_fused(me, norm, inputs, residual, norm.after_all_reduce(static, residual))
                graph, found = captured(
                    lambda norm=norm, static=static, residual=residual: norm.after_all_reduce(static, residual)
                )
                for seed in (1, 2):
                    inputs = inputs_of(me, (rows, WIDTH), dtype, seed)
                    static.copy_(inputs[me.rank])
                    graph.replay()
                    check_fused(me, norm, inputs, residual, found)

        norm = Norm(random_tensor((WIDTH,), torch.float32, 5).to(me.device))

        def layer(x: torch.Tensor, residual: torch.Tensor) -> Any:
            return fuse(x * 2, residual, norm.weight, EPS, 2048) if applies(x.shape[0]) else None

        compiled = torch.compile(layer, fullgraph=True)
        for rows in (4, 9, 17):
            inputs = inputs_of(me, (rows, WIDTH), torch.float32, rows)
            residual = random_tensor((rows, WIDTH), torch.float32, 99).to(me.device)
            found = compiled(inputs[me.rank], residual)
            check_fused(me, norm, [each * 2 for each in inputs], residual, found)
        torch.cuda.synchronize()

    with torch.inference_mode():
        in_sglang(me, check)


@pytest.mark.gpu(2)
def test_norms_are_fused_eagerly_in_graphs_and_compiled(ranks_of):
    ranks_of(2).run(fuse_eagerly_in_graphs_and_compiled)


def normalise_minimax(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        made, _architecture = sys.modules[MODEL_LOADER].get_model_architecture(model_config=None)
        weights = [random_tensor((width,), torch.bfloat16, width).to(me.device) for width in (768, 128)]
        norm = made(*(Norm(weight) for weight in weights))
        for rows in (1, 64, 2048):
            all_qkv = inputs_of(me, (rows, 1024), torch.bfloat16, rows)
            q, k, _v = all_qkv[me.rank].split([768, 128, 128], dim=-1)
            eager = norm.forward(q, k)
            graph, replayed = captured(lambda q=q, k=k: norm.forward(q, k))
            graph.replay()
            compiled = torch.compile(norm.forward, fullgraph=True)(q, k)
            for found in (eager, replayed, compiled):
                for result, mine, columns, weight in [
                    (found[0], q, slice(0, 768), weights[0]),
                    (found[1], k, slice(768, 896), weights[1]),
                ]:
                    squares = mean_of_squares([each[:, columns] for each in all_qkv])
                    check_rounding(result, rms_norm(mine, squares, weight, EPS))
        assert calls.take() == []
        torch.cuda.synchronize()

    with torch.inference_mode():
        in_sglang(me, check)


@pytest.mark.gpu(2)
def test_minimax_norms_eagerly_in_graphs_and_compiled(ranks_of):
    ranks_of(2).run(normalise_minimax)


@pytest.mark.gpu(2)
def test_experts_rows_are_put_together_in_the_norms_all_reduce(ranks_of):
    first, second = ranks_of(2).run(check_experts)
    assert ["finalises experts' rows" in line for line in first] == [True]
    assert second == []
