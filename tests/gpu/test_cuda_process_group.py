"""The backend "lamport" of torch.distributed on GPUs, and `install` for groups of NCCL."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed._symmetric_memory as symm_mem
from process_groups import contribution, counted, group_of, sum_dtypes, total_of, use_tensor_parallelism
from ranks import Rank

# NCCL takes no two ranks on one GPU.
pytestmark = [pytest.mark.gpu(2), pytest.mark.own_gpus]

ANY_BACKEND = pytest.mark.parametrize("backend", ["lamport", "nccl"])
"""A group of the backend, and one of NCCL after `install`."""


def sum_otherwise(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        with counted(0):
            for operation, expected in [(dist.ReduceOp.MAX, me.world_size), (dist.ReduceOp.AVG, 1.5)]:
                tensor = contribution(me, 8)
                dist.all_reduce(tensor, operation, group=group)
                assert (tensor == expected).all(), operation
        with counted(1):
            tensor = contribution(me, (20 << 20) + 3)
            dist.all_reduce(tensor, group=group)
            assert (tensor == total_of(me)).all()


@ANY_BACKEND
def test_sums_of_floats_go_through_the_package_and_others_to_nccl(ranks_of, backend):
    ranks_of(2).run(sum_dtypes, backend)
    ranks_of(2).run(sum_otherwise, backend)


def sum_asynchronously(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        dist.all_reduce(contribution(me, 8), group=group)
        working, waiting = torch.cuda.Stream(), torch.cuda.Stream()
        tensor = contribution(me, 1000)
        working.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(working):
            torch.cuda._sleep(20_000_000)
            work = dist.all_reduce(tensor, group=group, async_op=True)
        with torch.cuda.stream(waiting):
            work.wait()
            copy = tensor.clone()
        torch.cuda.synchronize()
        assert (copy == total_of(me)).all()


@ANY_BACKEND
def test_who_waits_on_another_stream_waits_for_the_sum(ranks_of, backend):
    ranks_of(2).run(sum_asynchronously, backend)


def sum_on_streams(me: Rank, rounds: int) -> None:
    """Sums that alternate between streams, each with its own tensor."""
    with group_of() as group:
        streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
        tensors = [contribution(me, 1000 * (index + 1)) for index in range(len(streams))]
        torch.cuda.synchronize()
        for _ in range(rounds):
            for stream, tensor in zip(streams, tensors, strict=True):
                with torch.cuda.stream(stream):
                    tensor.fill_(me.rank + 1)
                    dist.all_reduce(tensor, group=group)
        torch.cuda.synchronize()
        for tensor in tensors:
            assert (tensor == total_of(me)).all()


def test_sums_on_several_streams_do_not_disturb_each_other(ranks_of):
    ranks_of(2).run(sum_on_streams, 50)


def replay_graphs(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        source, total, others = contribution(me, 1000), contribution(me, 1000), contribution(me, 1000)
        dist.all_reduce(total, group=group)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            total.copy_(source)
            dist.all_reduce(total, group=group)
            dist.all_reduce(total, group=group)
            apart = source.clone()
            dist.all_reduce(apart, group=group, async_op=True).wait()
            others.copy_(apart + functional.all_reduce(source, "sum", group))
        for _ in range(4):
            total.zero_()
            others.zero_()
            graph.replay()
            torch.cuda.synchronize()
            assert (total == total_of(me) * me.world_size).all()
            assert (others == 2 * total_of(me)).all()
        # What replays use must live until here.
        torch.cuda.synchronize()
        del graph


@ANY_BACKEND
def test_graphs_that_captured_sums_can_be_replayed(ranks_of, backend):
    ranks_of(2).run(replay_graphs, backend)


def train(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        torch.manual_seed(0)
        linear = torch.nn.Linear(64, 64, device=me.device)
        model = torch.nn.parallel.DistributedDataParallel(linear, process_group=group)
        for _ in range(2):
            model.zero_grad()
            with counted(1):
                model(contribution(me, 2, 64)).sum().backward()
                torch.cuda.synchronize()
            assert (model.module.weight.grad == 2 * total_of(me) / me.world_size).all()


@ANY_BACKEND
def test_gradients_are_averaged_through_the_package(ranks_of, backend):
    ranks_of(2).run(train, backend)


def compile_sums(me: Rank, backend: str, mode: str) -> None:
    with group_of(backend) as group:

        def in_place(rows: torch.Tensor) -> torch.Tensor:
            doubled = rows * 2
            dist.all_reduce(doubled, group=group)
            return doubled + 1

        def functionally(rows: torch.Tensor) -> torch.Tensor:
            return functional.all_reduce(rows * 2, "sum", group) + 1

        for function in (in_place, functionally):
            torch._dynamo.reset()
            compiled = torch.compile(function, fullgraph=True, mode=mode)
            for _ in range(4):
                with torch.no_grad():
                    assert (compiled(contribution(me, 100)) == 2 * total_of(me) + 1).all()


@ANY_BACKEND
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_sums_are_whole_graphs(ranks_of, backend, mode):
    ranks_of(2).run(compile_sums, backend, mode)


def test_distributed_tensors_and_parallel_modules_sum_through_the_package(ranks_of):
    ranks_of(2).run(use_tensor_parallelism, 1e-3)


def run_other_collectives(me: Rank) -> None:
    with group_of() as group:
        flat = torch.empty(me.world_size, device=me.device)
        dist.all_gather_into_tensor(flat, contribution(me, 1), group=group)
        assert flat.tolist() == [rank + 1 for rank in range(me.world_size)]
        objects = [None] * me.world_size
        dist.all_gather_object(objects, me.rank, group=group)
        assert objects == list(range(me.world_size))
        tensors = [contribution(me, 64) for _ in range(3)]
        with dist._coalescing_manager(group, me.device):
            for tensor in tensors:
                dist.all_reduce(tensor, group=group)
        assert all((tensor == total_of(me)).all() for tensor in tensors)
        on_cpu = torch.ones(8)
        with counted(1):
            dist.all_reduce(on_cpu, group=group)
        assert (on_cpu == me.world_size).all()
        dist.barrier(group)


def test_other_collectives_and_cpu_tensors_work(ranks_of):
    ranks_of(2).run(run_other_collectives)


def use_symmetric_memory(me: Rank, backend: str) -> None:
    """torch's own sum on memory that the ranks share, between two of the package's, of which one is on that memory."""
    # Before the first use: multicast can put a shared host's GPUs out of service.
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    with group_of(backend) as group:
        name = group.group_name
        with counted(1):
            dist.all_reduce(contribution(me, 8), group=group)
        memory = symm_mem.empty(1024, dtype=torch.float32, device=me.device)
        handle = symm_mem.rendezvous(memory, name)
        assert (handle.rank, handle.world_size) == (me.rank, me.world_size)
        memory.copy_(contribution(me, 1024))
        handle.barrier()
        theirs = handle.get_buffer(1 - me.rank, memory.shape, memory.dtype)
        assert (theirs == 2 - me.rank).all()
        with counted(0):
            assert (torch.ops.symm_mem.one_shot_all_reduce(memory, "sum", name) == total_of(me)).all()
        with counted(1):
            dist.all_reduce(memory, group=group)
        assert (memory == total_of(me)).all()
        handle.barrier()
        assert (theirs == total_of(me)).all()
        # What the peer reads must live until here.
        handle.barrier()
        torch.cuda.synchronize()


@ANY_BACKEND
def test_symmetric_memory_works_on_the_group(ranks_of, backend):
    ranks_of(2).run(use_symmetric_memory, backend)
