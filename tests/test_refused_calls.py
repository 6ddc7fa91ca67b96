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
            return counted.append if name == "note_refusal" else getattr(_core, name)

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


@pytest.mark.parametrize(("collective", "run"), COLLECTIVES, ids=[each.name for each, _ in COLLECTIVES])
def test_what_runs_takes_the_operators_arguments_and_then_the_outputs(collective, run):
    parameters = list(inspect.signature(run).parameters.values())
    arguments = getattr(torch.ops.lamport_rs, collective.name).default._schema.arguments
    for parameter, argument in zip(parameters, arguments, strict=False):
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        assert (parameter.name, parameter.default) == (argument.name, default)
    assert [parameter.name for parameter in parameters[len(arguments) :]] == collective.outputs
