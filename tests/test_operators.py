"""The operators pass torch's checks of operators, and cost little more than the functions."""

import sys
import time
import warnings

import lamport_rs
import pytest
import torch
from lamport_rs import _core
from lamport_rs.operations import minimax, sums
from ranks import Rank

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
ATTEMPTS = 5


def check(me: Rank) -> None:
    workspace = me.workspace(1 << 18, timeout=60)
    operators, table, weight = torch.ops.lamport_rs, workspace.workspace, torch.rand(32)
    rows = torch.randn(4, 32)
    experts = rows.half(), torch.arange(6, dtype=torch.int32).view(3, 2) % 4, torch.rand(3, 2)
    quantised = torch.randn(5, 256).half(), None, torch.rand(256).half(), table
    cases = [
        (operators.all_reduce, (rows, table)),
        (operators.all_reduce, (rows.clone().requires_grad_(), table)),
        (operators.all_reduce, (rows.T, table, "one_shot")),
        (operators.all_reduce_rms_norm, (rows, rows, weight, table, 1e-5, 1.0)),
        (operators.all_reduce_layer_norm, (rows.half(), rows.half(), weight, table, weight, 1e-6)),
        (operators.all_reduce_layer_norm, (rows.half(), None, weight, table)),
        (operators.all_reduce_rms_norm_quant, (*quantised, "fp8_static", torch.ones(1), 1e-5)),
        (operators.all_reduce_rms_norm_quant, (*quantised, "fp8_token", None, 1e-5, 1.0, True)),
        (operators.all_reduce_rms_norm_quant, (*quantised, "fp8_group_column_major")),
        (operators.all_reduce_rms_norm_quant, (*quantised, "fp8_group_ue8m0")),
        (operators.all_reduce_rms_norm_quant, (*quantised, "mxfp8_swizzled")),
        (operators.all_reduce_rms_norm_quant, (*quantised, "nvfp4", torch.ones(1) * 99)),
        (operators.all_reduce_quant, (quantised[0], table, "fp8_static", torch.ones(1))),
        (operators.all_reduce_quant, (quantised[0], table, "fp8_token", None, True)),
        (operators.all_reduce_quant, (quantised[0], table, "fp8_group_column_major")),
        (operators.all_reduce_quant, (quantised[0], table, "fp8_group_ue8m0")),
        (operators.all_reduce_quant, (quantised[0], table, "mxfp8_swizzled", None, True)),
        (operators.all_reduce_quant, (quantised[0], table, "nvfp4", torch.ones(1) * 99)),
        (operators.moe_finalize_all_reduce, (*experts, table)),
        (operators.moe_finalize_all_reduce, (*experts, table, rows[:3].half())),
        (operators.moe_finalize_all_reduce_rms_norm, (*experts, rows[:3].half(), weight, table)),
        (operators.moe_finalize_all_reduce_rms_norm, (*experts, None, weight, table, rows[:3].half(), 1e-5, 1.0)),
        (operators.minimax_allreduce_rms, (torch.randn(4, 64)[:, :32], weight, table, me.rank, 2, 1e-5)),
        (operators.minimax_allreduce_rms_qk, (rows, weight[:16], weight[:8], table, 16, 8, me.rank, 2, 1e-5)),
    ]
    assert {operator for operator, _ in cases} == {getattr(operators, name) for name in COLLECTIVES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator, arguments in cases:
            torch.library.opcheck(operator.default, arguments, test_utils=CHECKS)
    assert lamport_rs.all_reduce(torch.ones(8), workspace)[0].item() == 2


def test_torch_finds_no_fault_with_the_operators(ranks_of):
    ranks_of(2).run(check, timeout=180)


def ask_for_shapes_on_one_rank(me: Rank) -> None:
    workspace = me.workspace(1 << 16, timeout=20)
    if me.rank == 1:
        x, operators = torch.ones(4, 32, device="meta"), torch.ops.lamport_rs
        for operator in (operators.all_reduce, operators.all_reduce.default):
            assert operator(x, workspace.workspace).shape == (4, 32)
        assert operators.all_reduce_rms_norm(x, x, x[0], workspace.workspace)[1].is_meta
    assert lamport_rs.all_reduce(torch.ones(8), workspace)[0].item() == 2


def test_to_ask_for_shapes_is_no_call(ranks_of):
    ranks_of(2).run(ask_for_shapes_on_one_rank)


def nanoseconds(call, repeats: int = 4000, rounds: int = 9) -> float:
    """Of the processor: what runs beside it adds none."""
    best = float("inf")
    for _ in range(rounds):
        started = time.thread_time_ns()
        for _ in range(repeats):
            call()
        best = min(best, (time.thread_time_ns() - started) / repeats)
    return best


COLLECTIVES = {name for name, *_ in _core.collectives()}


class CoreWithoutOperations:
    """The core, but for the operations, which return at once."""

    def __getattr__(self, name):
        return (lambda *_: None) if name in COLLECTIVES else getattr(_core, name)


@pytest.mark.skipif(sys.gettrace() is not None, reason="Python calls are traced, and times mean nothing")
def test_an_operator_costs_little_more_than_the_function(monkeypatch):
    for module in (sums, minimax):
        monkeypatch.setattr(module, "_core", CoreWithoutOperations())
    x, table, out = torch.ones(2, 16), torch.zeros(8, dtype=torch.int64), torch.empty(2, 16)
    norms, operators = (torch.ones(16), table, 0, 2, 1e-6), torch.ops.lamport_rs
    with torch.inference_mode():
        for function, operator, arguments in (
            (lamport_rs.all_reduce, operators.all_reduce, (x, table)),
            (lamport_rs.minimax_allreduce_rms, operators.minimax_allreduce_rms, (x, *norms)),
        ):
            for _ in range(ATTEMPTS):  # A busy machine slows one of the three down.
                yardstick = nanoseconds(lambda: torch.add(x, x, out=out))
                extra = nanoseconds(lambda: operator(*arguments)) - nanoseconds(lambda: function(*arguments))  # noqa: B023
                if extra < 0.6 * yardstick:
                    break
            # Measured: 0.3 of the yardstick. torch's dispatcher takes 1.7 of it, in every attempt.
            assert extra < 0.6 * yardstick, f"{extra:.0f} ns, and torch.add takes {yardstick:.0f} ns"
