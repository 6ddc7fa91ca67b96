"""The plugin's all-reduce in vLLM's `CudaCommunicator` on GPUs, eager and in graphs; vLLM's modules are stand-ins."""

import sys
import threading
from typing import Any

import pytest
import torch
from fake_vllm import MODULE, RELEASES, calls_of, cuda_communicator, in_vllm, logged
from ranks import Rank
from reference import DTYPES, check_same_bits, random_tensor, rounded_sum

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
