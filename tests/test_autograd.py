"""What autograd makes of the operations: they have no gradient, and an output that is passed in is changed in place."""

import subprocess
import sys
import warnings

import lamport_rs
import pytest
import torch
from lamport_rs import _core
from ranks import Rank, ThreadRanks
from torch.autograd import forward_ad

EPS = 1e-6


def calls_into(me: Rank, workspace: lamport_rs.LamportWorkspace):
    """Each operation with each of its outputs, as a function of that output."""
    x, weight, settings = torch.ones(2, 16), torch.ones(16), (me.rank, me.world_size, EPS)
    qkv, half = torch.ones(2, 32), weight
    norm, qk = lamport_rs.all_reduce_rms_norm, lamport_rs.minimax_allreduce_rms_qk
    return {
        "all_reduce": lambda out: lamport_rs.all_reduce(x, workspace, out=out),
        "the norm": lambda out: norm(x, x, weight, workspace, EPS, out=out),
        "the residual": lambda out: norm(x, x, weight, workspace, EPS, residual_out=out),
        "minimax": lambda out: lamport_rs.minimax_allreduce_rms(x, weight, workspace, *settings, out=out),
        "minimax Q": lambda out: qk(qkv, half, half, workspace, 16, 16, *settings, q_out=out),
        "minimax K": lambda out: qk(qkv, half, half, workspace, 16, 16, *settings, k_out=out),
    }


def overwrite_what_is_saved(me: Rank) -> None:
    workspace = me.workspace(4096, timeout=10)
    for name, call in calls_into(me, workspace).items():
        weight, activation = torch.ones(2, 16, requires_grad=True), torch.full((2, 16), 3.0)
        product = (weight * activation).sum()
        call(activation)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()
        assert weight.grad is None, name


def test_a_saved_tensor_that_is_overwritten_is_an_error_in_the_backward_pass():
    ThreadRanks(2).run(overwrite_what_is_saved)


def write_to_inference_tensors(me: Rank) -> None:
    with torch.inference_mode():
        outputs = [torch.empty(2, 16) for _ in range(6)]
    workspace = me.workspace(4096, timeout=10)
    calls = list(calls_into(me, workspace).values())
    for guard in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with guard():
            for call, out in zip(calls, outputs, strict=True):
                call(out)


def test_tensors_of_inference_mode_which_have_no_version_are_outputs_too():
    ThreadRanks(2).run(write_to_inference_tensors)


def reduce_what_requires_a_gradient(me: Rank) -> None:
    workspace = me.workspace(4096, timeout=10)
    x, weight = torch.ones(2, 16, requires_grad=True), torch.ones(16, requires_grad=True)
    settings, operators, table = (me.rank, me.world_size, EPS), torch.ops.lamport_rs, workspace.workspace
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [
            lamport_rs.all_reduce(x, workspace),
            operators.all_reduce(x, table),
            operators.all_reduce.default(x, table),
            *lamport_rs.all_reduce_rms_norm(x, x, weight, workspace),
            *operators.all_reduce_rms_norm(x, x, weight, table),
            lamport_rs.minimax_allreduce_rms(x, weight, workspace, *settings),
            operators.minimax_allreduce_rms(x, weight, table, *settings),
            *lamport_rs.minimax_allreduce_rms_qk(x, weight[:8], weight[8:], workspace, 8, 8, *settings),
            *operators.minimax_allreduce_rms_qk(x, weight[:8], weight[8:], table, 8, 8, *settings),
        ]
        results.append(torch.compile(lambda x: lamport_rs.all_reduce(x, workspace), backend="aot_eager")(x))
    for result in results:
        assert not result.requires_grad
        assert result.grad_fn is None


def test_results_require_no_gradient_from_functions_operators_and_compiled_code_alike(ranks_of):
    ranks_of(2).run(reduce_what_requires_a_gradient)


def write_over_a_history(me: Rank) -> None:
    workspace = me.workspace(4096, timeout=10)
    for name, call in calls_into(me, workspace).items():
        leaf = torch.ones(2, 16, requires_grad=True)
        for out in (leaf, leaf * 5):
            before = out.detach().clone()
            with pytest.raises(lamport_rs.LamportError, match=r"requires a gradient.*detach\(\)"):
                call(out)
            assert torch.equal(out, before), name
            call(out.detach())
            with torch.no_grad():
                call(out)


def test_an_output_that_requires_a_gradient_is_refused_where_gradients_are_enabled():
    ThreadRanks(2).run(write_over_a_history)


def warnings_of(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if "lamport_rs" in str(each.message)]


def lose_gradients(me: Rank, how: str) -> None:
    workspace, settings = me.workspace(4096, timeout=30), (me.rank, me.world_size, EPS)
    x, weight, table = torch.ones(2, 16), torch.ones(16, requires_grad=True), workspace.workspace
    needs_gradient = x.clone().requires_grad_()
    of_experts = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)
    calls = {
        "all_reduce": lambda: lamport_rs.all_reduce(needs_gradient, workspace),
        "all_reduce_rms_norm": lambda: torch.ops.lamport_rs.all_reduce_rms_norm(x, x, weight, table),
        # Of a bias, too.
        "all_reduce_layer_norm": lambda: lamport_rs.all_reduce_layer_norm(
            x.half(), None, torch.ones(16), workspace, weight
        ),
        "minimax_allreduce_rms": lambda: lamport_rs.minimax_allreduce_rms(x, weight, workspace, *settings),
        "minimax_allreduce_rms_qk": lambda: lamport_rs.minimax_allreduce_rms_qk(
            x, weight[:8], weight[8:], workspace, 8, 8, *settings
        ),
        "moe_finalize_all_reduce": lambda: lamport_rs.moe_finalize_all_reduce(
            needs_gradient.half(), *of_experts, workspace
        ),
        "moe_finalize_all_reduce_rms_norm": lambda: lamport_rs.moe_finalize_all_reduce_rms_norm(
            x.half(), *of_experts, None, weight, workspace
        ),
        # Of a scale that is given, too.
        "all_reduce_rms_norm_quant": lambda: lamport_rs.all_reduce_rms_norm_quant(
            x.half(), None, torch.ones(16).half(), workspace, "fp8_static", torch.ones(1, requires_grad=True)
        ),
        "all_reduce_quant": lambda: lamport_rs.all_reduce_quant(
            x.half(), workspace, "fp8_static", torch.ones(1, requires_grad=True)
        ),
    }
    assert calls.keys() == {name for name, *_ in _core.collectives()}
    lamport_rs.autograd._warned_of.clear()
    for name, call in calls.items():
        call = call if how == "eager" else torch.compile(call, backend=how)
        with torch.no_grad():
            assert warnings_of(call) == [], name
        (text,) = warnings_of(call)
        assert text.startswith(f"lamport_rs.{name} has no gradient"), text
        assert warnings_of(call) == [], name
    assert warnings_of(lambda: lamport_rs.all_reduce(x, workspace)) == []


def lose_forward_gradients(me: Rank) -> None:
    workspace, x = me.workspace(4096, timeout=30), torch.ones(2, 16)
    lamport_rs.autograd._warned_of.clear()
    with forward_ad.dual_level():
        assert warnings_of(lambda: lamport_rs.all_reduce(x, workspace)) == []
        dual = forward_ad.make_dual(x, x)
        (text,) = warnings_of(lambda: lamport_rs.all_reduce(dual, workspace))
        assert text.startswith("lamport_rs.all_reduce has no gradient"), text


def test_a_gradient_that_is_lost_forward_is_warned_of():
    ThreadRanks(1).run(lose_forward_gradients)


@pytest.mark.parametrize("how", ["eager", "aot_eager"])
def test_a_gradient_that_is_lost_is_warned_of_once_per_operation(ranks_of, how):
    ranks_of(2).run(lose_gradients, how, timeout=180)


LINES = """
import warnings, torch
torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None
import lamport_rs
workspace = lamport_rs.LamportWorkspace(0, 1, 4096, device="cpu")
x, weight, table = torch.ones(2, 16, requires_grad=True), torch.ones(16), workspace.workspace
operators = torch.ops.lamport_rs
compiled = torch.compile(lambda: lamport_rs.all_reduce(x, workspace), backend="aot_eager")
calls = [
    lambda: lamport_rs.all_reduce(x, workspace),
    lambda: lamport_rs.all_reduce_rms_norm(x, x, weight, workspace),
    lambda: lamport_rs.minimax_allreduce_rms(x, weight, workspace, 0, 1, 1e-6),
    lambda: lamport_rs.minimax_allreduce_rms_qk(x, weight[:8], weight[:8], workspace, 8, 8, 0, 1, 1e-6),
    lambda: operators.all_reduce(x, table),
    lambda: operators.all_reduce.default(x, table),
    lambda: compiled(),
]
for call in calls:
    lamport_rs.autograd._warned_of.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (warning,) = [each for each in caught if "has no gradient" in str(each.message)]
    found, expected = (warning.filename, warning.lineno), (__file__, call.__code__.co_firstlineno)
    assert found == expected, (found, expected)
"""


@pytest.mark.long
@pytest.mark.parametrize("ranges", ["1", "0"])
def test_the_warning_names_the_line_of_the_caller_however_he_calls(ranges, monkeypatch, tmp_path):
    monkeypatch.setenv("LAMPORT_RS_NVTX", ranges)
    program = tmp_path / "program.py"
    program.write_text(LINES)
    finished = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
