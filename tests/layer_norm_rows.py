"""all_reduce_layer_norm against a reference in float64, for the tests of both backends."""

import itertools
from typing import Any

import lamport_rs
import pytest
import torch
from minimax_rows import WEIGHTS
from ranks import Rank
from reference import (
    check_layer_norm,
    check_same_bits,
    digest,
    random_tensor,
    rounded_sum,
    rounded_sum_with,
)

EPS = 1e-5
DTYPES = [pair for pair in WEIGHTS if pair[0] != torch.float32]
"""Of the rows, and of the weights and biases."""


def room(me: Rank) -> int:
    return lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(1 << 18, me.world_size)


def operands(me: Rank, shape: tuple[int, ...], dtype: torch.dtype, weight_dtype: torch.dtype, seed: int) -> tuple:
    """Every rank's input, a residual, weights and biases. The first row, if there are several, is far from zero."""
    inputs = [random_tensor(shape, dtype, seed, rank).to(me.device) for rank in range(me.world_size)]
    residual = random_tensor(shape, dtype, seed, 100).to(me.device)
    weight, bias = (random_tensor(shape[-1:], weight_dtype, seed, 101 + at).to(me.device) for at in range(2))
    if len(shape) > 1 and shape[0] > 2:
        for each in inputs:
            each[0] = 0
        # The square of the mean is a million times the variance.
        residual[0] = (1000 + torch.arange(shape[-1], device=me.device) % 3 * 4).to(dtype).expand(residual[0].shape)
        residual[1, ..., 3] = torch.nan
    return inputs, residual, weight, bias


def normalise_shapes(
    me: Rank, dtype: torch.dtype, weight_dtype: torch.dtype, shapes: list[tuple[int, ...]]
) -> list[str]:
    """Every way to call it, with a residual and a bias and without; what all ranks must have in common."""
    workspace, digests = me.workspace(room(me)), []
    for seed, shape in enumerate(shapes):
        inputs, residual, weight, bias = operands(me, shape, dtype, weight_dtype, seed)
        own, what = inputs[me.rank], f"{dtype} {shape}, weight {weight_dtype}"
        arguments: tuple[Any, ...] = (own, residual, weight, workspace, bias, EPS)
        out, summed = lamport_rs.all_reduce_layer_norm(*arguments)
        expected = rounded_sum_with(residual, inputs)
        check_same_bits(summed, expected, f"residual_out of {what}")
        check_layer_norm(out, expected, weight, bias, EPS, f"out of {what}")
        table = (own, residual, weight, workspace.workspace, bias, EPS)
        others = [
            torch.ops.lamport_rs.all_reduce_layer_norm(*table),
            lamport_rs.all_reduce_layer_norm(*arguments, algorithm="one_shot"),
        ]
        places = {"out": own.clone(), "residual_out": residual.clone()}
        others.append(lamport_rs.all_reduce_layer_norm(places["out"], places["residual_out"], *arguments[2:], **places))
        assert others[-1][0] is places["out"], what
        assert others[-1][1] is places["residual_out"], what
        for other in others:
            check_same_bits(other[0], out, f"out of {what}, called otherwise")
            check_same_bits(other[1], summed, f"residual_out of {what}, called otherwise")
        plain, total = lamport_rs.all_reduce_layer_norm(own, None, weight, workspace)
        rows = rounded_sum(inputs)
        check_same_bits(total, rows, f"residual_out of {what}, without a residual")
        check_layer_norm(plain, rows, weight, None, EPS, f"out of {what}, without a residual and a bias")
        digests.append(digest(out, summed, plain))
    return digests


def normalise_alone_and_in_a_batch(me: Rank, tokens: int, hidden: int) -> None:
    workspace = me.workspace(room(me))
    rows = random_tensor((tokens, hidden), torch.bfloat16, 7, me.rank).to(me.device)
    weight, bias = (random_tensor((hidden,), torch.bfloat16, 101 + at).to(me.device) for at in range(2))
    out, summed = lamport_rs.all_reduce_layer_norm(rows, None, weight, workspace, bias)
    for count in (1, 2, 9, 33):
        for first in range(0, min(tokens, 4 * count), count):
            few = slice(first, first + count)
            some, its = lamport_rs.all_reduce_layer_norm(rows[few].clone(), None, weight, workspace, bias)
            check_same_bits(some, out[few], f"out, rows {few}")
            check_same_bits(its, summed[few], f"residual_out, rows {few}")


def normalise_more_than_the_slots_hold(me: Rank) -> None:
    """In pieces on a GPU: the same bits."""
    small, large = me.workspace(8192 * me.world_size), me.workspace(room(me))
    for tokens, hidden in itertools.product((70, 33), (640, 1024)):
        rows, residual = (random_tensor((tokens, hidden), torch.half, 3, seed).to(me.device) for seed in (me.rank, 99))
        weight = torch.ones(hidden, device=me.device)
        found, expected = (
            lamport_rs.all_reduce_layer_norm(rows, residual, weight, workspace, weight) for workspace in (small, large)
        )
        check_same_bits(found[0], expected[0], f"out, {tokens} of {hidden}")
        check_same_bits(found[1], expected[1], f"residual_out, {tokens} of {hidden}")


def leave_nan_after_a_fault(me: Rank) -> None:
    """Rank 1 does not come: what is left is NaN."""
    workspace = me.workspace(1 << 20, kept=True, timeout=1.0)
    if me.rank == 1:
        return
    rows = torch.ones(4, 256, dtype=torch.bfloat16, device=me.device)
    places = {name: torch.zeros_like(rows) for name in ("out", "residual_out")}

    def call() -> None:
        lamport_rs.all_reduce_layer_norm(rows, None, rows[0], workspace, rows[1], **places)
        workspace.synchronize()

    with pytest.raises(lamport_rs.LamportTimeoutError) as raised:
        call()
    assert raised.value.missing_ranks == (1,)
    for name, place in places.items():
        assert bool(place.isnan().all()), f"{name} is not NaN"
