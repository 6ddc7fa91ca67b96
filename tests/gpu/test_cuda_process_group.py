"""The backend "lamport" of torch.distributed on GPUs, and `install` for groups of NCCL."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from process_groups import contribution, counted, group_of, total_of
from ranks import Rank
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

# NCCL takes no two ranks on one GPU.
pytestmark = [pytest.mark.gpu(2), pytest.mark.own_gpus]

ANY_BACKEND = pytest.mark.parametrize("backend", ["lamport", "nccl"])
"""A group of the backend, and one of NCCL after `install`."""


def sum_dtypes(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        for dtype, served in [
            (torch.float32, 1),
            (torch.float16, 1),
            (torch.bfloat16, 1),
            (torch.float64, 0),
            (torch.int64, 0),
        ]:
            tensor = contribution(me, 1000, dtype=dtype)
            with counted(served):
                dist.all_reduce(tensor, group=group)
            assert (tensor == total_of(me)).all(), dtype
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


def use_tensor_parallelism(me: Rank) -> None:
    group = dist.new_group(backend="lamport")
    mesh = DeviceMesh.from_group(group, "cuda", mesh=list(range(me.world_size)))
    with counted(1):
        partial = DTensor.from_local(contribution(me, 100), mesh, [Partial()])
        whole = partial.redistribute(placements=[Replicate()]).to_local()
    assert (whole == total_of(me)).all()
    torch.manual_seed(0)
    linear = torch.nn.Linear
    model = torch.nn.Sequential(linear(64, 128, bias=False), torch.nn.ReLU(), linear(128, 64, bias=False))
    model, rows = model.to(me.device), torch.randn(4, 64).to(me.device)
    with torch.no_grad():
        expected = model(rows)
        model = parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        with counted(1):
            torch.testing.assert_close(model(rows), expected, atol=1e-3, rtol=1e-3)
    dist.destroy_process_group(group)


def test_distributed_tensors_and_parallel_modules_sum_through_the_package(ranks_of):
    ranks_of(2).run(use_tensor_parallelism)


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
