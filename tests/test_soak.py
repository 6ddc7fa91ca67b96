"""Long runs of one workspace: any mix of operations, sizes and dtypes, with ranks that come early and late."""

import time

import lamport_rs
import numpy as np
import pytest
import torch
from ranks import Rank
from reference import (
    DTYPES,
    SENTINEL,
    check_rounding,
    check_same_bits,
    digest,
    mean_of_squares,
    random_tensor,
    rms_norm,
    rms_norm_of_rows,
    rounded_sum,
    rounded_sum_with,
)

COMM_SIZE = 1 << 18
EPS = 1e-6


def reduce_once(me: Rank, workspace, dice, dtype: torch.dtype, seed: int) -> torch.Tensor:
    most = COMM_SIZE // me.world_size // 16 * 16 // dtype.itemsize
    elements = int(dice.choice([0, 1, dice.integers(1, 64), dice.integers(1, 4096), dice.integers(1, most + 1), most]))
    inputs = [random_tensor((elements,), dtype, seed, rank) for rank in range(me.world_size)]
    if dice.integers(4) == 0 and elements * dtype.itemsize % 4 == 0:
        # Sentinel words among the others, on one of the ranks.
        inputs[seed % me.world_size].view(torch.int32)[:: int(dice.integers(1, 9))] = SENTINEL
    expected = rounded_sum(inputs)
    own = inputs[me.rank]
    out = own if dice.integers(2) else torch.full_like(own, torch.nan)
    lamport_rs.all_reduce(own, workspace, out=out)
    check_same_bits(out, expected, f"operation {seed}")
    return out


def normalise_once(me: Rank, workspace, dice, dtype: torch.dtype, seed: int) -> torch.Tensor:
    shape = (int(dice.integers(1, 9)), 8 * int(dice.integers(1, 100)))
    inputs = [random_tensor(shape, dtype, seed, rank) for rank in range(me.world_size)]
    residual, weight = random_tensor(shape, dtype, seed, 20), random_tensor(shape[1:], dtype, seed, 21)
    out, residual_out = lamport_rs.all_reduce_rms_norm(inputs[me.rank], residual, weight, workspace, EPS)
    rows = rounded_sum_with(residual, inputs)
    check_same_bits(residual_out, rows, f"operation {seed}")
    check_rounding(out, rms_norm_of_rows(rows, weight, EPS), f"operation {seed}")
    return out


def minimax_once(me: Rank, workspace, dice, dtype: torch.dtype, seed: int) -> torch.Tensor:
    tokens, width = int(dice.integers(1, 200)), 32
    parts = [random_tensor((tokens, width), dtype, seed, rank) for rank in range(me.world_size)]
    weight = random_tensor((width,), dtype, seed)
    half, settings = width // 2, (me.rank, me.world_size, EPS)
    if dice.integers(2):
        out = lamport_rs.minimax_allreduce_rms(parts[me.rank], weight, workspace, *settings)
        expected = rms_norm(parts[me.rank], mean_of_squares(parts), weight, EPS)
    else:
        weights = weight.split(half)
        q, _ = lamport_rs.minimax_allreduce_rms_qk(parts[me.rank], *weights, workspace, half, half, *settings)
        q_parts = [part[:, :half] for part in parts]
        out, expected = q, rms_norm(q_parts[me.rank], mean_of_squares(q_parts), weights[0], EPS)
    check_rounding(out, expected, f"operation {seed}")
    return torch.zeros(0)  # Each rank has other columns.


def mix_operations(me: Rank, operations: int, seed: int) -> list[str]:
    workspace = me.workspace(COMM_SIZE)
    dice, own_dice = np.random.default_rng(seed), np.random.default_rng((seed, me.rank))
    digests = []
    for index in range(operations):
        operation = dice.choice([reduce_once, reduce_once, reduce_once, normalise_once, minimax_once])
        dtype = DTYPES[dice.integers(3)]
        if own_dice.integers(50) == 0:
            time.sleep(own_dice.uniform(0, 0.003))
        digests.append(digest(operation(me, workspace, dice, dtype, seed * 100_000 + index)))
    return digests


@pytest.mark.long
@pytest.mark.parametrize(("world_size", "operations"), [(2, 4000), (3, 2000), (4, 1200), (8, 300)])
def test_any_mix_of_operations_on_one_workspace_is_right(ranks_of, world_size, operations):
    digests = ranks_of(world_size).run(mix_operations, operations, world_size, timeout=120)
    assert all(each == digests[0] for each in digests)


def hurry(me: Rank, operations: int) -> None:
    """No reference to compute in between, so that fast ranks run ahead as far as the protocol lets them."""
    workspace = me.workspace(COMM_SIZE)
    tensor, out = torch.empty(64), torch.empty(64)
    for index in range(operations):
        tensor.fill_(index % 1000 + me.rank)
        lamport_rs.all_reduce(tensor, workspace, out=out)
        expected = me.world_size * (index % 1000) + sum(range(me.world_size))
        assert out[0] == expected, f"operation {index}"
        assert out[63] == expected, f"operation {index}"


@pytest.mark.parametrize(("world_size", "operations"), [(2, 20_000), (4, 4000)])
def test_operations_back_to_back_do_not_overtake_each_other(ranks_of, world_size, operations):
    ranks_of(world_size).run(hurry, operations, timeout=120)
