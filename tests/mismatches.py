"""Calls that differ between ranks, for both backends: rank 1 makes the second of each pair, all others the first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError, LamportMismatchError, LamportWorkspace
from ranks import Rank
from torch.utils._python_dispatch import TorchDispatchMode

HIDDEN = 64

Call = Callable[[Rank, LamportWorkspace], Any]


def total(elements: int = 8, dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        return lamport_rs.all_reduce(torch.ones(elements, dtype=dtype, device=me.device), workspace, **options)

    return call


def norm(rows: int = 4, columns: int = HIDDEN, weight: torch.dtype = torch.bfloat16, **options: Any) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        x = torch.ones(rows, columns, dtype=torch.bfloat16, device=me.device)
        weights = torch.ones(columns, dtype=weight, device=me.device)
        return lamport_rs.all_reduce_rms_norm(x, x, weights, workspace, **options)[0]

    return call


def layer_norm(rows: int = 4, with_bias: bool = True, **options: Any) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        x = torch.ones(rows, HIDDEN, dtype=torch.bfloat16, device=me.device)
        bias = x[0] if with_bias else None
        return lamport_rs.all_reduce_layer_norm(x, x, x[0], workspace, bias, **options)[0]

    return call


def quantised(quant_format: str, rows: int = 4, columns: int = 128) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        x = torch.ones(rows, columns, dtype=torch.bfloat16, device=me.device)
        return lamport_rs.all_reduce_rms_norm_quant(x, x, x[0], workspace, quant_format, with_norm=True)[3]

    return call


def quantised_sum(quant_format: str, rows: int = 4, columns: int = 128) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        x = torch.ones(rows, columns, dtype=torch.bfloat16, device=me.device)
        return lamport_rs.all_reduce_quant(x, workspace, quant_format, with_sum=True)[2]

    return call


def finalised(tokens: int = 4, columns: int = HIDDEN, dtype: torch.dtype = torch.bfloat16) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        return lamport_rs.moe_finalize_all_reduce(*experts(me, tokens, columns, dtype), workspace)

    return call


def finalised_norm(tokens: int = 4, columns: int = HIDDEN, with_residual: bool = False, **options: Any) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        operands = experts(me, tokens, columns)
        rows = torch.ones(tokens, columns, dtype=torch.bfloat16, device=me.device)
        norm_operands = rows if with_residual else None, rows[0], workspace
        return lamport_rs.moe_finalize_all_reduce_rms_norm(*operands, *norm_operands, **options)[0]

    return call


def experts(
    me: Rank, tokens: int, columns: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, their numbers, and their weights: as many, and as many of each token, as each rank likes."""
    index = torch.zeros(tokens, 1 + me.rank, dtype=torch.int32, device=me.device)
    return torch.ones(2 + me.rank, columns, dtype=dtype, device=me.device), index, index.float()


def minimax(rows: int = 4, columns: int = HIDDEN, eps: float = 1e-6) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        x, weight = torch.ones(rows, columns, device=me.device), torch.ones(columns, device=me.device)
        return lamport_rs.minimax_allreduce_rms(x, weight, workspace, me.rank, me.world_size, eps)

    return call


def minimax_qk(rows: int = 4, q: int = 32, k: int = 16, eps: float = 1e-6) -> Call:
    def call(me: Rank, workspace: LamportWorkspace) -> torch.Tensor:
        qkv = torch.ones(rows, 64, device=me.device)
        weights = torch.ones(q, device=me.device), torch.ones(k, device=me.device)
        where = me.rank, me.world_size
        return lamport_rs.minimax_allreduce_rms_qk(qkv, *weights, workspace, q, k, *where, eps)[0]

    return call


LARGE = 300_000
"""Elements of a sum that takes several operations of the protocol on the host."""

DIFFERENT: dict[str, tuple[Call, Call, str]] = {
    # name: (the call of all ranks but one, that of rank 1, what the error says of the latter)
    "another size": (total(8), total(4), "all_reduce of 4 float32"),
    "a larger size": (total(4), total(8), "all_reduce of 8 float32"),
    "a size of several chunks": (total(LARGE), total(LARGE - 8), f"all_reduce of {LARGE - 8} float32"),
    "another dtype of as many bytes": (total(8), total(16, torch.bfloat16), "all_reduce of 16 bfloat16"),
    "another dtype of as many elements": (
        total(8, torch.float16),
        total(8, torch.bfloat16),
        "all_reduce of 8 bfloat16",
    ),
    "another algorithm": (total(algorithm="one_shot"), total(algorithm="two_shot"), "8 float32, two_shot"),
    "another operation": (total(256, torch.bfloat16), norm(), r"all_reduce_rms_norm of \[4, 64\] bfloat16"),
    "as many elements in other rows": (norm(4, 64), norm(2, 128), r"all_reduce_rms_norm of \[2, 128\] bfloat16"),
    "another epsilon": (norm(eps=1e-6), norm(eps=1e-5), r"all_reduce_rms_norm of \[4, 64\] bfloat16"),
    "a quantiser": (norm(4, 128), quantised("fp8_token"), r"quant of \[4, 128\] bfloat16 to fp8_token"),
    "another format": (quantised("fp8_token"), quantised("fp8_group"), r"quant of \[4, 128\] bfloat16 to fp8_group"),
    "a quantised sum and not a norm": (
        quantised("fp8_token"),
        quantised_sum("fp8_token"),
        r"all_reduce_quant of \[4, 128\] bfloat16 to fp8_token",
    ),
    "another format of a sum": (quantised_sum("fp8_token"), quantised_sum("fp8_group"), "bfloat16 to fp8_group"),
    "scales of bytes of a sum": (
        quantised_sum("fp8_group"),
        quantised_sum("mxfp8"),
        r"quant of \[4, 128\] bfloat16 to mxfp8",
    ),
    "rows of experts": (norm(), finalised_norm(), r"moe_finalize_all_reduce_rms_norm of \[4, 64\] bfloat16"),
    "rows of experts without a norm": (finalised_norm(), finalised(), r"moe_finalize_all_reduce of \[4, 64\] bfloat16"),
    "fewer tokens of experts": (finalised(4), finalised(3), r"moe_finalize_all_reduce of \[3, 64\] bfloat16"),
    "wider rows of experts": (finalised(4, 64), finalised(4, 128), r"moe_finalize_all_reduce of \[4, 128\] bfloat16"),
    "wider rows of experts, and a norm": (
        finalised_norm(4, 64),
        finalised_norm(4, 128),
        r"moe_finalize_all_reduce_rms_norm of \[4, 128\] bfloat16",
    ),
    "as many elements in other rows of experts": (
        finalised(4, 64),
        finalised(2, 128),
        r"moe_finalize_all_reduce of \[2, 128\] bfloat16",
    ),
    "another dtype of experts' rows": (
        finalised(),
        finalised(dtype=torch.float16),
        r"moe_finalize_all_reduce of \[4, 64\] float16",
    ),
    "a residual behind experts": (
        finalised_norm(),
        finalised_norm(with_residual=True),
        r"moe_finalize_all_reduce_rms_norm of \[4, 64\] bfloat16",
    ),
    "another epsilon behind experts": (finalised_norm(), finalised_norm(eps=1e-5), "moe_finalize_all_reduce_rms_norm"),
    "another weight bias": (norm(), norm(weight_bias=1.0), r"all_reduce_rms_norm of \[4, 64\] bfloat16"),
    "a layer norm": (norm(), layer_norm(), r"all_reduce_layer_norm of \[4, 64\] bfloat16"),
    "other rows of a layer norm": (layer_norm(), layer_norm(5), r"all_reduce_layer_norm of \[5, 64\] bfloat16"),
    "another epsilon of a layer norm": (layer_norm(), layer_norm(eps=1e-3), "all_reduce_layer_norm"),
    "no bias of a layer norm": (layer_norm(), layer_norm(with_bias=False), "all_reduce_layer_norm"),
    "another dtype of weights": (norm(), norm(weight=torch.float32), "weights float32"),
    "one matrix and not two": (minimax_qk(), minimax(), r"minimax_allreduce_rms of \[4, 64\] float32"),
    "other rows of a norm": (minimax(4), minimax(8), r"minimax_allreduce_rms of \[8, 64\] float32"),
    "another epsilon of a norm": (minimax(), minimax(eps=1e-5), r"minimax_allreduce_rms of \[4, 64\] float32"),
    "another width of Q": (minimax_qk(), minimax_qk(q=40), r"minimax_allreduce_rms_qk of \[4, 40 \+ 16\] float32"),
    "another width of K": (minimax_qk(), minimax_qk(k=8), r"minimax_allreduce_rms_qk of \[4, 32 \+ 8\] float32"),
    "nothing": (total(8), total(0), "all_reduce of 8 float32"),
}
"""The last differs in that rank 1's call has nothing to do, and its next is another number."""


class Mode(TorchDispatchMode):
    """A mode that changes nothing: operations go through torch's dispatcher under it."""

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        return function(*arguments, **(options or {}))


def under_a_mode(call: Call) -> Call:
    def run(me: Rank, workspace: LamportWorkspace) -> Any:
        with Mode():
            return call(me, workspace)

    return run


def compiled(call: Call) -> Call:
    def run(me: Rank, workspace: LamportWorkspace) -> Any:
        torch._dynamo.reset()
        return torch.compile(partial(call, me, workspace), backend="aot_eager", fullgraph=True)()

    return run


def norm_into_one(me: Rank, workspace: LamportWorkspace) -> Any:
    x = torch.ones(4, HIDDEN, device=me.device)
    out = torch.empty_like(x)
    return lamport_rs.all_reduce_rms_norm(x, x, x[0], workspace, out=out, residual_out=out)


def norm_of_no_width(me: Rank, workspace: LamportWorkspace) -> Any:
    qkv, weight = torch.ones(4, 64, device=me.device), torch.ones(8, device=me.device)
    return lamport_rs.minimax_allreduce_rms_qk(qkv, weight, weight, workspace, 8, -8, me.rank, me.world_size, 1e-6)


def sum_with_scales_that_are_given(me: Rank, workspace: LamportWorkspace) -> Any:
    x = torch.ones(4, 128, dtype=torch.bfloat16, device=me.device)
    scale = torch.ones(1, device=me.device)
    return lamport_rs.all_reduce_quant(x, workspace, "fp8_static", scale, scale_out=torch.ones(4, 1, device=me.device))


def sum_into_what_requires_a_gradient(me: Rank, workspace: LamportWorkspace) -> Any:
    out = torch.ones(8, device=me.device, requires_grad=True)
    return lamport_rs.all_reduce(torch.ones(8, device=me.device), workspace, out=out * 5)


class Interrupting:
    """A number during whose conversion the user presses Ctrl-C."""

    def __float__(self) -> float:
        raise KeyboardInterrupt


REFUSED: dict[str, Callable[[Rank, LamportWorkspace], Any]] = {
    "an integer tensor": lambda _me, workspace: lamport_rs.all_reduce(torch.ones(8, dtype=torch.int32), workspace),
    "a list": lambda _me, workspace: lamport_rs.all_reduce([1.0], workspace),
    "an unknown algorithm": lambda me, workspace: total(algorithm="three_shot")(me, workspace),
    "an epsilon that is no number": lambda me, workspace: norm(eps="x")(me, workspace),
    "an infinite epsilon": lambda me, workspace: norm(eps=float("inf"))(me, workspace),
    "an interrupt in an argument": lambda me, workspace: norm(eps=Interrupting())(me, workspace),
    "another rank": lambda me, workspace: minimax()(Rank(me.rank + 1, me.world_size, me.device), workspace),
    "a qkv that is none": lambda me, workspace: lamport_rs.minimax_allreduce_rms_qk(
        None, torch.ones(8), torch.ones(8), workspace, 8, 8, me.rank, me.world_size, 1e-6
    ),
    "outputs that are one, under a mode": under_a_mode(norm_into_one),
    "scales that are given, under a mode": under_a_mode(sum_with_scales_that_are_given),
    "an algorithm that is no name, under a mode": under_a_mode(total(algorithm=1)),
    "an integer tensor, under a mode": under_a_mode(total(dtype=torch.int32)),
    "an output that requires a gradient": sum_into_what_requires_a_gradient,
    "an operator under torch.vmap": lambda me, workspace: torch.vmap(
        lambda row: torch.ops.lamport_rs.all_reduce.default(row, workspace.workspace)
    )(torch.ones(2, 8, device=me.device)),
    "an operator on a sparse tensor": lambda me, workspace: torch.ops.lamport_rs.all_reduce.default(
        torch.ones(8, 8, device=me.device).to_sparse(), workspace.workspace
    ),
    "an operator's argument": lambda _me, workspace: torch.ops.lamport_rs.all_reduce(
        torch.ones(8, dtype=torch.int32), workspace.workspace
    ),
}
"""Calls that one rank refuses."""

COMPILED_AND_REFUSED = {
    "outputs that are one, compiled": compiled(norm_into_one),
    "a width that is none, compiled": compiled(norm_of_no_width),
    "an integer tensor, compiled": compiled(total(dtype=torch.int32)),
}
"""Likewise, while a function is compiled or when it runs. Not for ranks that are threads: the compiler takes one."""


_ALL_REFUSED = {**REFUSED, **COMPILED_AND_REFUSED}


def synchronize(_me: Rank, workspace: LamportWorkspace) -> None:
    workspace.synchronize()


def call_all(calls: list[Call], me: Rank, workspace: LamportWorkspace) -> None:
    for call in calls:
        call(me, workspace)


def check_that_they_differ(me: Rank, name: str) -> str:
    """Two equal calls, then those that differ, then one more. Returns what this rank was told."""
    others, rank_1s, _ = DIFFERENT[name]
    workspace = me.workspace(4 << 20, timeout=20)
    for _ in range(2):
        total()(me, workspace)
    # Whose call has nothing to do, and on a GPU whoever has launched it, hears of it later.
    calls = [rank_1s if me.rank == 1 else others, total(), synchronize, total()]
    with pytest.raises(LamportMismatchError, match="the ranks differ") as caught:
        call_all(calls, me, workspace)
    error = caught.value
    assert (error.rank, error.peer == me.rank) == (me.rank, False), str(error)
    assert error.operation in str(error)
    assert error.peer_operation in str(error)
    with pytest.raises(LamportError, match="failed earlier"):
        total()(me, workspace)
    return str(error)


def go_on_after_a_refusal(me: Rank, name: str) -> str:
    """Rank 1's call is refused there, and it goes on; the others' first call was served by nobody."""
    workspace = me.workspace(1 << 16, timeout=20)
    total()(me, workspace)
    if me.rank == 1:
        with pytest.raises((LamportError, TypeError, RuntimeError, KeyboardInterrupt)):
            _ALL_REFUSED[name](me, workspace)
    with pytest.raises(LamportMismatchError, match=r"went on after a call that raised|has refused its call") as caught:
        call_all([total(), synchronize], me, workspace)
    return str(caught.value)


def check_that_rank_0_heard_of_it(text: str) -> None:
    """What rank 0 hears where rank 1 went on: rank 1's next operation, or the refusal before, whichever comes first."""
    assert "rank 0 runs operation 2, all_reduce of 8 float32, one_shot" in text
    found = (
        "but rank 1 runs operation 3, all_reduce of 8 float32, one_shot",
        "but rank 1 has refused its call of that number",
    )
    assert any(each in text for each in found), text


def refuse_on_all_ranks(me: Rank, name: str) -> list[float]:
    """What all ranks refuse parts nobody."""
    workspace = me.workspace(1 << 16, timeout=20)
    with pytest.raises((LamportError, TypeError, RuntimeError, KeyboardInterrupt)):
        _ALL_REFUSED[name](me, workspace)
    result = total()(me, workspace)
    workspace.synchronize()
    return result.tolist()
