"""What a call leaves behind that sent nothing: a count, and nothing else."""

import ctypes
import gc
import inspect
import signal
import weakref
from functools import partial

import lamport_rs
import pytest
import torch
from lamport_rs import _core
from lamport_rs.operations import COLLECTIVES
from ranks import Rank, ThreadRanks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def call_of(operation: str, x: torch.Tensor, workspace, me: Rank):
    weight, own = torch.ones(16), (me.rank, me.world_size, 1e-6)
    of_experts = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
    return {
        "all_reduce": partial(lamport_rs.all_reduce, x, workspace),
        "all_reduce_layer_norm": partial(lamport_rs.all_reduce_layer_norm, x, None, weight, workspace, weight),
        "all_reduce_quant": partial(lamport_rs.all_reduce_quant, x, workspace, "fp8_token"),
        "all_reduce_rms_norm": partial(lamport_rs.all_reduce_rms_norm, x, None, weight, workspace),
        "all_reduce_rms_norm_quant": partial(
            lamport_rs.all_reduce_rms_norm_quant, x, None, weight, workspace, "fp8_token"
        ),
        "moe_finalize_all_reduce": partial(lamport_rs.moe_finalize_all_reduce, x, *of_experts, workspace),
        "moe_finalize_all_reduce_rms_norm": partial(
            lamport_rs.moe_finalize_all_reduce_rms_norm, x, *of_experts, None, weight, workspace
        ),
        "minimax_allreduce_rms": partial(lamport_rs.minimax_allreduce_rms, x, weight, workspace, *own),
        "minimax_allreduce_rms_qk": partial(
            lamport_rs.minimax_allreduce_rms_qk, x, weight[:8], weight[:8], workspace, 8, 8, *own
        ),
    }[operation]


def refuse_and_let_go(me: Rank) -> None:
    workspace = me.workspace(4096)
    gc.collect()
    gc.disable()
    try:
        for collective, _ in COLLECTIVES:
            x = torch.ones(2, 16, dtype=torch.float64)
            is_alive = weakref.ref(x)
            with pytest.raises(lamport_rs.LamportError, match="float64"):
                call_of(collective.name, x, workspace, me)()
            del x
            assert is_alive() is None, collective.name
    finally:
        gc.enable()


def test_a_refused_call_keeps_no_tensor_alive():
    ThreadRanks(1).run(refuse_and_let_go)


class HandlerError(Exception):
    pass


class RaisesSignal(torch.Tensor):
    """A tensor that has its process sent a signal while the core looks at it."""

    is_neg = partial(ctypes.CDLL(None)["raise"], signal.SIGUSR1)


def test_a_call_counts_whose_refusal_a_signals_handler_interrupts(monkeypatch):
    counted = []

    class Core:
        def __getattr__(self, name):
            return (lambda *named: counted.append(named)) if name == "note_refusal" else getattr(_core, name)

    def interrupt(*_: object) -> None:
        raise HandlerError

    monkeypatch.setattr(lamport_rs.operations.sums, "_core", Core())
    me = ThreadRanks(1).member(0)
    workspace = me.workspace(4096)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        # The first is refused for its shape, and the second for its layout.
        for out in (torch.ones(3, 16), torch.ones(16, 2).T):
            counted.clear()
            with pytest.raises(HandlerError):
                lamport_rs.all_reduce(torch.ones(2, 16), workspace, out=out.as_subclass(RaisesSignal))
            assert len(counted) == 1
    finally:
        # What pytest would print of the tensor sends it again.
        del RaisesSignal.is_neg
        signal.signal(signal.SIGUSR1, before)


def refuse_what_does_not_fit(me: Rank) -> None:
    """Each call of rank 0 counts once: rank 1 has as many calls refused for other reasons, and all go on together."""
    workspace, x = me.workspace(4096), torch.ones(2, 16)
    for collective, _ in COLLECTIVES:
        call = call_of(collective.name, x, workspace, me)
        operator = getattr(torch.ops.lamport_rs, collective.name)
        arguments = [workspace.workspace if each is workspace else each for each in call.args]
        misfits = {
            "unknown": partial(call, other=1),
            "too many": partial(call, *range(9)),
            "too few": partial(call.func, x, workspace=workspace),
            "table of another name": partial(call.func, x, table=workspace.workspace),
            "not in its place": partial(call.func, workspace, *[x] * (len(call.args) - 1)),
            "operator, unknown": partial(operator, *arguments, other=1),
            "operator, too few": partial(operator, workspace=workspace.workspace),
            "operator, not in its place": partial(operator, workspace.workspace, *[x] * (len(call.args) - 1)),
            "overload, unknown": partial(operator.default, *arguments, other=1),
            "overload, of no kind": partial(operator.default, *arguments, object()),
            "overload, too few": partial(operator.default, workspace.workspace),
            "overload, not in its place": partial(operator.default, workspace.workspace, *[x] * (len(call.args) - 1)),
        }
        for what, misfit in misfits.items():
            if "few" in what and collective.name == "all_reduce":
                misfit = partial(misfit, other=1)
            with pytest.raises((TypeError, RuntimeError, AttributeError)):
                misfit() if me.rank == 0 else lamport_rs.all_reduce(x.double(), workspace)
            total = lamport_rs.all_reduce(x, workspace)
            assert total[0, 0].item() == me.world_size, f"{collective.name}: {what}"


def test_calls_count_that_do_not_fit_the_parameters():
    ThreadRanks(2).run(refuse_what_does_not_fit)


class SeesOperators(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        return operator(*arguments, **(options or {}))


class SeesFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


MISFITS = {
    "unknown": lambda x, w: lamport_rs.all_reduce(x, w, other=1),
    "too many": lambda x, w: lamport_rs.all_reduce(x, w, None, "auto"),
    "too few": lambda x, w: lamport_rs.all_reduce_rms_norm(x, workspace=w),
    "operator": lambda x, w: torch.ops.lamport_rs.all_reduce(x, w, other=1),
    "overload": lambda x, w: torch.ops.lamport_rs.all_reduce.default(x, w, 1.0),
}


def part_with_a_misfit(me: Rank, kind: str, how: str) -> None:
    """Rank 0's call does not fit, and its caller goes on: no rank has a sum of two calls."""
    workspace, x, call = me.workspace(kept=True, timeout=30), torch.full((4,), 1.0 + me.rank), MISFITS[kind]
    if me.rank == 0:
        modes = {"dispatch": SeesOperators, "function": SeesFunctions}
        if how in modes:
            with modes[how](), pytest.raises((TypeError, RuntimeError)):
                call(x, workspace.workspace)
        else:
            torch._dynamo.reset()
            call = torch.compile(call, backend="aot_eager", fullgraph=how == "whole graph")
            with pytest.raises((TypeError, RuntimeError)):
                call(x, workspace.workspace)
    with pytest.raises(lamport_rs.LamportMismatchError) as caught:
        lamport_rs.all_reduce(x, workspace)
    assert caught.value.operation.startswith(f"operation {2 - me.rank},"), "it was not counted once"


@pytest.mark.parametrize("how", ["dispatch", "function", "compiled", "whole graph"])
@pytest.mark.parametrize("kind", MISFITS)
def test_they_count_under_modes_and_where_they_are_compiled(ranks_of, kind, how):
    ranks_of(2).run(part_with_a_misfit, kind, how)


def test_a_signature_is_what_a_collective_is_called_with():
    parameters = inspect.signature(lamport_rs.all_reduce).parameters
    assert list(parameters) == ["input", "workspace", "out", "algorithm"]
    assert parameters["workspace"].default is inspect.Parameter.empty
    assert parameters["algorithm"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(("collective", "run"), COLLECTIVES, ids=[each.name for each, _ in COLLECTIVES])
def test_what_runs_takes_the_operators_arguments_and_then_the_outputs(collective, run):
    parameters = list(inspect.signature(run).parameters.values())
    arguments = getattr(torch.ops.lamport_rs, collective.name).default._schema.arguments
    for parameter, argument in zip(parameters, arguments, strict=False):
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        assert (parameter.name, parameter.default) == (argument.name, default)
    assert [parameter.name for parameter in parameters[len(arguments) :]] == collective.outputs
