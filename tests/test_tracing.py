"""Tracers record the operators; what cannot be recorded or transformed is refused."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from ranks import Rank, ThreadRanks
from reference import check_same_bits
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

X, ANOTHER = torch.ones(2, 16), torch.full((2, 16), 10.0)


class Recorder(TorchDispatchMode):
    """Notes which operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def work_of(me: Rank, workspace):
    weight, settings = torch.ones(16), (me.rank, me.world_size, 0.0)

    def work(x):
        total = lamport_rs.all_reduce(x * 2, workspace) + 1
        out, residual = lamport_rs.all_reduce_rms_norm(total, x, weight, workspace, 0.0)
        rows = lamport_rs.minimax_allreduce_rms(residual, weight, workspace, *settings)
        q, k = lamport_rs.minimax_allreduce_rms_qk(x, weight[:8], weight[8:], workspace, 8, 8, *settings)
        into = torch.empty_like(x)
        lamport_rs.all_reduce(x, workspace, out=into)
        return torch.cat([out, residual, rows, q, k, into], 1)

    return work


def trace(me: Rank) -> None:
    workspace = me.workspace(1 << 16, timeout=30)
    work = work_of(me, workspace)
    tracers = {
        "jit.trace": lambda: torch.jit.trace(work, (X,), check_trace=False),
        "make_fx": lambda: make_fx(work)(X),
        "make_fx before dispatch": lambda: make_fx(work, pre_dispatch=True)(X),
        "make_fx of symbols": lambda: make_fx(work, tracing_mode="symbolic", _allow_non_fake_inputs=True)(X),
        "symbolic_trace": lambda: torch.fx.symbolic_trace(work_without_shapes(me, workspace)),
    }
    for name, tracer in tracers.items():
        traced = tracer()
        expected = (work_without_shapes(me, workspace) if name == "symbolic_trace" else work)(ANOTHER)
        check_same_bits(traced(ANOTHER), expected, name)
        by_jit = name == "jit.trace"
        nodes = traced.graph.nodes() if by_jit else traced.graph.nodes
        recorded = [str(node.kind() if by_jit else node.target) for node in nodes]
        calls = [each for each in recorded if "lamport_rs" in each]
        assert len(calls) == (1 if name == "symbolic_trace" else 5), (name, recorded)


def work_without_shapes(me: Rank, workspace):
    return lambda x: lamport_rs.all_reduce(x * 2, workspace) + 1


def test_every_tracer_records_the_operations(ranks_of):
    ranks_of(2).run(trace)


class Repeated(torch.nn.Module):
    """Sums that look alike, and one whose result only rank 0 uses."""

    def __init__(self, me: Rank, workspace) -> None:
        super().__init__()
        self.me, self.workspace = me, workspace

    def forward(self, x):
        threefold = lamport_rs.all_reduce(x * 3, self.workspace)
        total = lamport_rs.all_reduce(x, self.workspace) + lamport_rs.all_reduce(x, self.workspace)
        return threefold + total if self.me.rank == 0 else total


def trace_what_torchscript_would_change(me: Rank) -> None:
    workspace = me.workspace(1 << 16, timeout=30)
    traced = torch.jit.trace(Repeated(me, workspace).eval(), (X,), check_trace=False)
    optimised = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    for module in (traced, optimised):
        # The executor changes the graph while it is profiled: in the first two runs.
        for _ in range(3):
            assert module(X)[0, 0].item() == (10 if me.rank == 0 else 4)
        assert str(module.graph_for(X)).count("lamport_rs::ordered_all_reduce") == 3
    check_same_bits(lamport_rs.all_reduce(X, workspace), X * 2, "the next sum")


def test_torchscript_neither_leaves_out_nor_merges_operations(ranks_of):
    ranks_of(2).run(trace_what_torchscript_would_change)


def note_operators(me: Rank) -> None:
    workspace = me.workspace(1 << 16, timeout=10)
    with Recorder() as seen:
        lamport_rs.all_reduce(X, workspace)
        torch.ops.lamport_rs.all_reduce(X, workspace.workspace)
    assert sum("lamport_rs" in name for name in seen.names) == 2, seen.names


def test_dispatch_modes_see_the_operators():
    ThreadRanks(2).run(note_operators)


def transform(me: Rank) -> None:
    workspace = me.workspace(1 << 16, timeout=10)
    table = workspace.workspace
    for reduce in (
        lambda x: lamport_rs.all_reduce(x, workspace),
        lambda x: torch.ops.lamport_rs.all_reduce(x, table),
        lambda x: torch.ops.lamport_rs.all_reduce.default(x, table),
    ):
        for call in (
            lambda: torch.vmap(reduce)(X),  # noqa: B023
            lambda: torch.func.grad(lambda x: reduce(x).sum())(X),  # noqa: B023
            lambda: torch.func.jvp(reduce, (X,), (X,)),  # noqa: B023
        ):
            with pytest.raises(LamportError, match="transformation of functions"):
                call()
    check_same_bits(lamport_rs.all_reduce(X, workspace), X * 2, "the next sum")


def test_transformations_of_functions_are_refused(ranks_of):
    # Between processes: torch's forward mode is one for all threads.
    ranks_of(2).run(transform)
