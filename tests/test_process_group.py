"""The backend "lamport" of torch.distributed, on the CPU: who sums what, by every way that leads to an all-reduce."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import lamport_rs.workspace
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed._symmetric_memory as symm_mem
from lamport_rs import LamportError, distributed
from lamport_rs.reduce_op import gloo_takes_for_sum
from process_groups import (
    contribution,
    counted,
    group_of,
    sum_dtypes,
    total_of,
    use_tensor_parallelism,
)
from ranks import Rank
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ANY_BACKEND = pytest.mark.parametrize("backend", ["lamport", "gloo"])
"""A group of the backend, and one of gloo after `install`."""


@ANY_BACKEND
@pytest.mark.parametrize("world_size", [2, 3])
def test_sums_of_floats_go_through_the_package_and_others_to_gloo(ranks_of, world_size, backend):
    ranks_of(world_size).run(sum_dtypes, backend)


def sum_shapes(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        for tensor, served in [
            (contribution(me), 1),
            (contribution(me, 0), 0),
            (contribution(me, 1001)[1:], 1),
            (contribution(me, 64, 64).t()[:, ::2], 1),
            (contribution(me, 64, 64).t() if me.rank else contribution(me, 64, 64), 1),
            (torch.nn.Parameter(contribution(me, 8), requires_grad=False), 1),
            (contribution(me, (5 << 20) + 3), 1),
        ]:
            with counted(served):
                dist.all_reduce(tensor, group=group)
            assert (tensor == total_of(me)).all(), (tensor.shape, tensor.stride())
        pair = torch.complex(contribution(me, 8), -contribution(me, 8))
        with counted(1):
            dist.all_reduce(pair, group=group)
        assert (pair == complex(total_of(me), -total_of(me))).all()


@ANY_BACKEND
def test_tensors_of_any_size_and_layout_are_summed(ranks_of, backend):
    ranks_of(2).run(sum_shapes, backend)


class _Subclass(torch.Tensor):
    """A tensor of a type of its own, of which torch tells nobody."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def reduce_otherwise(me: Rank, backend: str, after_a_sum: bool) -> None:
    with group_of(backend) as group:
        if after_a_sum:
            dist.all_reduce(contribution(me, 8), group=group)
        reduce_in_other_ways(me, group)


def reduce_in_other_ways(me: Rank, group: dist.ProcessGroup) -> None:
    with counted(0):
        for operation, expected in [
            (dist.ReduceOp.MAX, me.world_size),
            (dist.ReduceOp.MIN, 1),
            (dist.ReduceOp.PRODUCT, 2),
        ]:
            tensor = contribution(me, 8)
            dist.all_reduce(tensor, operation, group=group)
            assert (tensor == expected).all(), operation
        sparse = torch.sparse_coo_tensor([[me.rank]], [1.0], (4,))
        dist.all_reduce(sparse, group=group)
        assert sparse.to_dense().tolist() == [1, 1, 0, 0]
        typed = contribution(me, 8).as_subclass(_Subclass)
        dist.all_reduce(typed, group=group)
        assert (typed.as_subclass(torch.Tensor) == total_of(me)).all()


@ANY_BACKEND
@pytest.mark.parametrize("after_a_sum", [False, True])
def test_other_operations_and_tensors_go_to_gloo(ranks_of, backend, after_a_sum):
    ranks_of(2).run(reduce_otherwise, backend, after_a_sum)


def call_in_every_way(me: Rank, backend: str) -> None:
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.SUM
    with group_of(backend) as group:
        for name, call in {
            "async_op": lambda tensor: dist.all_reduce(tensor, group=group, async_op=True),
            "list and options": lambda tensor: group.allreduce([tensor], options),
            "list": lambda tensor: group.allreduce([tensor]),
            "list and operation": lambda tensor: group.allreduce([tensor], op=dist.ReduceOp.SUM),
            "tensor": lambda tensor: group.allreduce(tensor),
        }.items():
            tensor = contribution(me, 100)
            with counted(1):
                work = call(tensor)
            work.wait()
            assert work.is_completed(), name
            assert (tensor == total_of(me)).all(), name
            assert (work.get_future().wait()[0] == total_of(me)).all(), name


@ANY_BACKEND
def test_every_way_of_calling_returns_a_work_whose_future_has_the_tensors(ranks_of, backend):
    ranks_of(2).run(call_in_every_way, backend)


def sum_without_options(me: Rank, backend: str) -> None:
    """From the second sum of a device on, `dist.all_reduce` makes no options for C++: they take most of its time."""
    with group_of(backend) as group, pytest.MonkeyPatch.context() as patches:
        dist.all_reduce(contribution(me, 8), group=group)
        patches.setattr(dist.distributed_c10d, "AllreduceOptions", None)
        for tensor in (contribution(me, 8), contribution(me, 64, 64).t()[:, ::2], torch.nn.Parameter(contribution(me))):
            with counted(1):
                assert dist.all_reduce(tensor, group=group) is None
            assert (tensor == total_of(me)).all()
            with counted(1):
                work = dist.all_reduce(tensor, dist.ReduceOp.SUM, group, True)
            work.wait()
            assert work.is_completed()
            assert (work.get_future().wait()[0] == total_of(me) * me.world_size).all()


@ANY_BACKEND
def test_plain_sums_spare_what_torch_does_for_others(ranks_of, backend):
    ranks_of(2).run(sum_without_options, backend)


class _Functions(TorchFunctionMode):
    """Keeps the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.seen.append(function)
        return function(*arguments, **(named or {}))


class _Operators(TorchDispatchMode):
    """Keeps the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*arguments, **(named or {}))


class _OwnGroup(dist.ProcessGroup):
    """A subclass that sums in its own way."""

    def allreduce(self, tensors: list[torch.Tensor], options: Any) -> Any:
        tensors[0].fill_(-1)
        return distributed._finished(tensors)


def watch_sums(me: Rank) -> None:
    with group_of() as group:
        tensor = contribution(me, 8)
        dist.all_reduce(tensor, group=group)
        with _Functions() as functions:
            dist.all_reduce(tensor, group=group)
        # torch 2.6 does not tell.
        assert (dist.all_reduce in functions.seen) == hasattr(dist.distributed_c10d, "handle_torch_function")
        with _Operators() as operators:
            dist.all_reduce(tensor, group=group)
        assert any("allreduce_" in name for name in operators.seen)
        assert (tensor == total_of(me) * me.world_size**2).all()
        ones = [torch.ones(4), torch.ones(5)]
        with counted(0), dist._coalescing_manager(group):
            for one in ones:
                dist.all_reduce(one, group=group)
            assert all((one == 1).all() for one in ones)
        assert all((one == me.world_size).all() for one in ones)
        own = _OwnGroup(me.rank, me.world_size)
        distributed._groups[id(own)] = distributed._groups[id(group)]
        try:
            with counted(0):
                dist.all_reduce(tensor, group=own)
        finally:
            del distributed._groups[id(own)]
        assert (tensor == -1).all()


def test_who_watches_collects_or_overrides_sums_still_gets_them(ranks_of):
    ranks_of(2).run(watch_sums)


def test_torchs_function_stays_the_same_object():
    script = """
import inspect, torch, torch.distributed as dist
from torch.distributed import all_reduce
before = inspect.signature(all_reduce)
from lamport_rs import distributed
distributed._hook()
assert dist.all_reduce is all_reduce is dist.distributed_c10d.all_reduce
assert inspect.signature(all_reduce) == before
assert distributed.all_reduce in [cell.cell_contents for cell in all_reduce.__closure__]
try:
    all_reduce(torch.ones(1))
except ValueError as error:
    assert "init_process_group" in str(error), error
else:
    raise AssertionError("there is no group")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def run_other_collectives(me: Rank) -> None:
    """All that torch.distributed has, on CPU tensors."""
    world, mine = range(me.world_size), float(me.rank + 1)
    each = [float(rank + 1) for rank in world]
    with group_of() as group:
        dist.barrier(group)
        tensor = contribution(me, 4)
        dist.broadcast(tensor, 1, group=group)
        assert (tensor == 2).all()
        gathered = [torch.empty(4) for _ in world]
        dist.all_gather(gathered, contribution(me, 4), group=group)
        assert [part[0].item() for part in gathered] == each
        flat = torch.empty(me.world_size)
        dist.all_gather_into_tensor(flat, contribution(me, 1), group=group)
        assert flat.tolist() == each
        shard = torch.empty(1)
        dist.reduce_scatter_tensor(shard, contribution(me, me.world_size), group=group)
        assert shard.item() == total_of(me)
        exchanged = torch.empty(me.world_size)
        dist.all_to_all_single(exchanged, contribution(me, me.world_size), group=group)
        assert exchanged.tolist() == each
        objects: list[Any] = [None] * me.world_size
        dist.all_gather_object(objects, {"rank": me.rank}, group=group)
        assert objects == [{"rank": rank} for rank in world]
        tensor = contribution(me, 4)
        dist.reduce(tensor, 0, group=group)
        assert me.rank or (tensor == total_of(me)).all()
        peer = torch.empty(1)
        if me.rank == 0:
            dist.send(torch.tensor([mine]), 1, group=group)
        elif me.rank == 1:
            dist.recv(peer, 0, group=group)
            assert peer.item() == 1
        pair = [contribution(me, 4), contribution(me, 5)]
        with pytest.warns(FutureWarning):
            dist.all_reduce_coalesced(pair, group=group)
        assert all((part == total_of(me)).all() for part in pair)
        assert dist.get_backend(group) == "lamport"
        if hasattr(dist.ProcessGroup, "get_group_store"):  # torch 2.6 has none.
            assert group.get_group_store() is not None
        assert type(group) is dist.ProcessGroup


def test_all_other_collectives_work(ranks_of):
    ranks_of(2).run(run_other_collectives)


def ask_for_symmetric_memory(me: Rank) -> None:
    """Torch's symmetric memory finds the group by its name, and exchanges handles over the store that it has."""
    with group_of() as group:
        assert torch._C._distributed_c10d._resolve_process_group(group.group_name) is group
        stores = [dist.distributed_c10d._get_process_group_store(group)]
        if hasattr(group, "get_group_store"):  # torch 2.6 has none.
            stores.append(group.get_group_store())
        for index, store in enumerate(stores):
            store.set(f"{index} {me.rank}", f"handle of {me.rank}")
            assert store.get(f"{index} {1 - me.rank}") == f"handle of {1 - me.rank}".encode()
        with pytest.raises(RuntimeError, match="does not support device type cpu"):
            symm_mem.rendezvous(symm_mem.empty(8, device="cpu"), group.group_name)


def test_symmetric_memory_finds_in_the_group_what_it_finds_in_others(ranks_of):
    ranks_of(2).run(ask_for_symmetric_memory)


def sum_functionally(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        tensor = contribution(me, 100)
        with counted(1):
            result = functional.all_reduce(tensor, "sum", group) + 0
        assert (result == total_of(me)).all()
        assert (tensor == me.rank + 1).all()
        with counted(0):
            assert (functional.all_reduce(tensor, "max", group) == me.world_size).all()
            integers = functional.all_reduce(contribution(me, 8, dtype=torch.int64), "sum", group)
        assert (integers == total_of(me)).all()
        with counted(1), torch.inference_mode():
            assert (functional.all_reduce(contribution(me, 8), "sum", group) == total_of(me)).all()
        with counted(1), torch.profiler.profile() as profile:
            dist.all_reduce(tensor, group=group)
        assert "c10d::allreduce_" in {event.key for event in profile.key_averages()}


@ANY_BACKEND
def test_functional_collectives_and_profilers_find_the_operator(ranks_of, backend):
    ranks_of(2).run(sum_functionally, backend)


def tell_operations_apart(me: Rank) -> None:
    """As with a torch whose operations cannot be asked what they are."""
    asked, distributed.is_sum = distributed.is_sum, gloo_takes_for_sum
    try:
        with group_of() as group:
            for operation, served, expected in [
                ("sum", 1, total_of(me)),
                ("max", 0, me.world_size),
                ("min", 0, 1),
                ("product", 0, 2),
                ("sum", 1, total_of(me)),
            ]:
                with counted(served):
                    result = functional.all_reduce(contribution(me, 100), operation, group) + 0
                assert (result == expected).all(), operation
        train(me, "lamport")
    finally:
        distributed.is_sum = asked


def test_sums_are_told_from_other_operations_where_torch_does_not_say(ranks_of):
    ranks_of(2).run(tell_operations_apart)


def leave_other_groups_alone(me: Rank) -> None:
    with group_of(), counted(0):
        tensor = contribution(me, 100)
        dist.all_reduce(tensor)
        dist.all_reduce(tensor, async_op=True).wait()
        assert (functional.all_reduce(tensor, "sum", dist.group.WORLD) == 4 * total_of(me)).all()
        assert (tensor == 2 * total_of(me)).all()


def test_groups_of_others_keep_their_sums(ranks_of):
    ranks_of(2).run(leave_other_groups_alone)


def test_distributed_tensors_and_parallel_modules_sum_through_the_package(ranks_of):
    ranks_of(2).run(use_tensor_parallelism, None)


def train(me: Rank, backend: str) -> None:
    with group_of(backend) as group:
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64), process_group=group)
        for _ in range(2):
            model.zero_grad()
            with counted(1):
                model(contribution(me, 2, 64)).sum().backward()
            assert (model.module.weight.grad == 2 * total_of(me) / me.world_size).all()


@ANY_BACKEND
def test_gradients_are_averaged_through_the_package(ranks_of, backend):
    ranks_of(2).run(train, backend)


def compile_sums(me: Rank, backend: str) -> None:
    with group_of(backend) as group:

        def in_place(rows: torch.Tensor) -> torch.Tensor:
            doubled = rows * 2
            dist.all_reduce(doubled, group=group)
            return doubled + dist.get_world_size(group)

        def functionally(rows: torch.Tensor) -> torch.Tensor:
            return functional.all_reduce(rows * 2, "sum", group) + group.size()

        for function in (in_place, functionally):
            torch._dynamo.reset()
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            for _ in range(2):
                with torch.no_grad(), counted(1):
                    assert (compiled(contribution(me, 100)) == 2 * total_of(me) + me.world_size).all()


@ANY_BACKEND
def test_compiled_sums_are_whole_graphs(ranks_of, backend):
    ranks_of(2).run(compile_sums, backend)


def sum_in_parts(me: Rank) -> None:
    with group_of(ranks=[0, 1]) as group:
        tensor = contribution(me, 8)
        with counted(me.rank < 2):
            if me.rank < 2:
                dist.all_reduce(tensor, group=group)
        assert (tensor == (3 if me.rank < 2 else me.rank + 1)).all()
        if me.rank >= 2:
            distributed.install(group)  # Nothing to do on this rank.
    alone, _ = dist.new_subgroups(1)
    distributed.install(alone)
    with counted(0):
        dist.all_reduce(tensor, group=alone)
    dist.destroy_process_group(alone)


def test_groups_of_some_ranks_and_of_one(ranks_of):
    ranks_of(3).run(sum_in_parts)


def sum_from_threads(me: Rank, rounds: int) -> None:
    """Threads that take turns, and others that come at once, in an order that does not matter."""
    with group_of() as group:
        tensor = contribution(me, 1000)

        def reduce() -> None:
            for _ in range(rounds):
                mine = contribution(me, 1000)
                dist.all_reduce(mine, group=group)
                assert (mine == total_of(me)).all()

        dist.all_reduce(tensor, group=group)
        failures: list[BaseException] = []

        def attempt() -> None:
            try:
                reduce()
            except BaseException as error:
                failures.append(error)

        for count in (1, 1, 3):
            threads = [threading.Thread(target=attempt) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            reduce()
        assert not failures, failures


def test_threads_may_take_turns_and_overlap(ranks_of):
    ranks_of(2).run(sum_from_threads, 20)


def sum_from_thread_after_thread(me: Rank) -> None:
    """Most threads have the number of the one before, which has ended."""
    with group_of() as group:

        def reduce() -> None:
            tensor = contribution(me, 1000)
            dist.all_reduce(tensor, group=group)
            totals.append(tensor[0].item())

        totals: list[float] = []
        for _ in range(10):
            thread = threading.Thread(target=reduce)
            thread.start()
            thread.join()
        assert totals == [total_of(me)] * 10


def test_a_thread_may_take_the_place_of_one_that_has_ended(ranks_of):
    ranks_of(2).run(sum_from_thread_after_thread)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def sum_on_two_hosts(me: Rank, backend: str) -> list[str]:
    """The ranks tell each other boots that differ, as on two machines."""
    plain = lamport_rs.workspace.all_gather_over
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip().encode()
    made_up = b"%0*d" % (len(boot), me.rank)

    def all_gather_over(*arguments: Any) -> Callable[[bytes], list[bytes]]:
        all_gather = plain(*arguments)
        return lambda message: all_gather(message.replace(boot, made_up))

    records = _Records()
    lamport_rs.workspace.all_gather_over = all_gather_over
    logging.getLogger("lamport_rs").addHandler(records)
    try:
        with group_of(backend) as group, counted(0):
            for tensor in (contribution(me, 100), contribution(me, 50), contribution(me, 50, dtype=torch.int64)):
                dist.all_reduce(tensor, group=group)
                assert (tensor == total_of(me)).all()
            assert (functional.all_reduce(contribution(me, 9), "sum", group) == total_of(me)).all()
    finally:
        logging.getLogger("lamport_rs").removeHandler(records)
        lamport_rs.workspace.all_gather_over = plain
    return records.texts


@ANY_BACKEND
def test_a_group_on_two_hosts_sums_with_gloo_and_says_so_once(ranks_of, backend):
    texts = ranks_of(2).run(sum_on_two_hosts, backend)
    assert len(texts[0]) == 1
    assert "one host" in texts[0][0]
    assert texts[1] == []


UNCONFIGURED = """
import lamport_rs, torch, torch.distributed as dist
dist.init_process_group("lamport")
x = torch.ones(3)
dist.all_reduce(x)
alone = lamport_rs.LamportWorkspace(0, 1, 4096, lambda message: [message], device="cpu")
alone.abort("over")
try:
    lamport_rs.all_reduce(x, alone)
except lamport_rs.LamportAbortedError:
    print(x.tolist())
dist.destroy_process_group()
"""


@pytest.mark.long
def test_where_no_log_is_configured_that_sums_are_not_ours_is_printed_and_faults_are_only_raised(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(UNCONFIGURED)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    variables = {**os.environ, "LAMPORT_RS_MAX_MEMORY": "abc", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("[2.0, 2.0, 2.0]") == 2
    told = [line for line in finished.stderr.splitlines() if "lamport" in line.lower() or "gloo" in line]
    assert len(told) == 1
    assert "NCCL or gloo does all sums on cpu: LAMPORT_RS_MAX_MEMORY is 'abc'" in told[0]


def destroy(me: Rank) -> None:
    with group_of() as group:
        dist.all_reduce(contribution(me, 8), group=group)
        (sums,) = distributed._groups[id(group)]._devices.values()
        workspace, reference, count = sums._workspace, weakref.ref(group), len(distributed._groups)
    del group
    gc.collect()
    assert reference() is None
    assert len(distributed._groups) == count - 1
    with pytest.raises(LamportError, match="cleaned up"):
        workspace.synchronize()


def test_a_destroyed_group_gives_its_workspace_up(ranks_of):
    ranks_of(2).run(destroy)


def test_install_says_what_it_takes():
    with pytest.raises(LamportError, match="no default one"):
        distributed.install()
    with pytest.raises(LamportError, match="not str"):
        distributed.install("lamport")


AT_EXIT = "terminate called without an active exception"


def run_script(script: str, ranks: int, tmp_path) -> None:
    """Run a script of its own process for each rank, which has `rank`, `size` and `method`."""
    file = tmp_path / "script.py"
    begin = f"import sys\nrank, size, method = int(sys.argv[1]), {ranks}, 'file://{tmp_path}/store'\n"
    file.write_text(f"{begin}{script}\nprint('done', file=sys.stderr, flush=True)\n")
    processes = [
        subprocess.Popen([sys.executable, file, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            # With plain groups of gloo, too, one process in some twenty ends so, after all its work.
            died_at_exit = process.returncode == -signal.SIGABRT and errors.endswith(f"done\n{AT_EXIT}\n")
            assert process.returncode == 0 or died_at_exit, errors
    finally:
        for process in processes:
            process.kill()


@pytest.mark.long
@pytest.mark.parametrize("backend", ["lamport", "cpu:lamport", "cpu:gloo,cuda:lamport", "cpu:lamport,cuda:gloo"])
def test_the_backend_is_known_without_an_import(tmp_path, backend):
    served = "cuda:lamport" not in backend
    script = f"""
import torch.distributed as dist, torch
assert "lamport_rs" not in sys.modules
dist.init_process_group({backend!r}, init_method=method, rank=rank, world_size=size)
tensor = torch.ones(8)
dist.all_reduce(tensor)
assert tensor.tolist() == [size] * 8
if {served}:
    make_options, dist.distributed_c10d.AllreduceOptions = dist.distributed_c10d.AllreduceOptions, None
    dist.all_reduce(tensor)
    assert tensor.tolist() == [size**2] * 8
    dist.distributed_c10d.AllreduceOptions = make_options
mesh = dist.init_device_mesh("cpu", (size,))
dist.all_reduce(tensor, group=mesh.get_group())
from lamport_rs import distributed
devices = distributed._groups[id(dist.group.WORLD)]._devices
assert (devices[-1] is not None) == {served}
dist.destroy_process_group()
"""
    run_script(script, 2, tmp_path)


def modules_after(imports: str) -> list[str]:
    script = f"import json, sys, {imports}; print(json.dumps([*sys.modules]))"
    names = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    return [name for name in names if name.startswith("lamport_rs")]


@pytest.mark.long
def test_importing_torch_loads_nothing_of_the_package_but_the_backends_name():
    assert modules_after("torch") == ["lamport_rs_autoload"]
    assert "lamport_rs.torch_operators" in modules_after("lamport_rs, torch")
    assert "lamport_rs.distributed" not in modules_after("torch, lamport_rs")
