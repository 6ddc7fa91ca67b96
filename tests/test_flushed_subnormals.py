"""A rank whose thread flushes subnormal numbers to zero computes the same bits as the others, and goes on flushing."""

import contextlib
import signal
import time
from collections.abc import Iterator

import lamport_rs
import pytest
import torch
from minimax_rows import Operation, workspace_for
from ranks import Rank
from reductions import ALGORITHMS, NormedReduction, Reduction
from reference import DTYPES, check_same_bits, digest


def flushes() -> bool:
    """Whether this thread does: half of the smallest normal number is then zero."""
    return (torch.tensor([torch.finfo(torch.float32).tiny]) * 0.5).item() == 0.0


@contextlib.contextmanager
def flushing() -> Iterator[None]:
    assert torch.set_flush_denormal(True), "this processor cannot"
    try:
        assert flushes()
        yield
        assert flushes(), "the caller's setting is lost"
    finally:
        torch.set_flush_denormal(False)


def run_twice(me: Rank, operation: Operation | NormedReduction | Reduction, workspace) -> list[str]:
    """As all ranks are, and with one that flushes: the same bits."""
    operation.poison()
    operation(workspace)
    expected = operation.results()
    assert any(each.isfinite().any() and each.count_nonzero() for each in expected), "nothing that could be flushed"
    operation.poison()
    with flushing() if me.rank == 1 else contextlib.nullcontext():
        operation(workspace)
    operation.check_against(expected, "one rank flushes")
    return [digest(each) for each in expected]


def sum_subnormals(me: Rank, dtype: torch.dtype) -> list[list[str]]:
    workspace, digests = me.workspace(1 << 20), []
    for algorithm in ALGORITHMS:
        operation = Reduction.random(me, 5003, algorithm, dtype)
        operation.rows.mul_(torch.finfo(dtype).tiny / 8)
        run_twice(me, operation, workspace)
        operation.check("the reference")
        digests.append([digest(each) for each in operation.results()])
    assert digests[0] == digests[1], "the algorithms differ"
    return digests


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_subnormals_are_summed_alike(ranks_of, world_size, dtype):
    digests = ranks_of(world_size).run(sum_subnormals, dtype)
    assert all(each == digests[0] for each in digests)


def normalise_subnormals(me: Rank, dtype: torch.dtype) -> list[list[str]]:
    """Values, their squares, and weighted results that are subnormal."""
    workspace, digests = me.workspace(1 << 20), []
    for factor in (torch.finfo(dtype).tiny / 8, 2.0**-70):
        operation = NormedReduction.random(me, 7, 264, "one_shot", dtype)
        for tensor in (operation.rows, operation.residual):
            tensor.mul_(factor)
        operation.weight.mul_(torch.finfo(dtype).tiny)
        operation.eps = 0.0
        digests.append(run_twice(me, operation, workspace))
    return digests


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_rows_of_subnormals_are_normalised_alike(ranks_of, world_size, dtype):
    digests = ranks_of(world_size).run(normalise_subnormals, dtype)
    assert all(each == digests[0] for each in digests)


def add_a_subnormal_epsilon(me: Rank) -> list[str]:
    """It is a part of what ranks compare, and of what they compute."""
    workspace, digests = me.workspace(), []
    rows, weight = torch.full((2, 64), 1e-20), torch.ones(64)
    for eps in (1.2e-38, 1e-38, 1e-40):
        with flushing() if me.rank == 1 else contextlib.nullcontext():
            normed = lamport_rs.all_reduce_rms_norm(rows, None, weight, workspace, eps, weight_bias=eps)
            spread = lamport_rs.minimax_allreduce_rms(rows, weight, workspace, me.rank, me.world_size, eps)
            with pytest.raises(lamport_rs.LamportError, match="not negative"):
                lamport_rs.all_reduce_rms_norm(rows, None, weight, workspace, -eps)
        digests.append(digest(*normed, spread))
    assert len({*digests}) == 3, "epsilon makes no difference"
    return digests


def test_a_subnormal_epsilon_is_the_same_on_all_ranks(ranks_of):
    digests = ranks_of(2).run(add_a_subnormal_epsilon)
    assert digests[0] == digests[1]


def normalise_spread_subnormals(me: Rank, dtype: torch.dtype) -> None:
    workspace = workspace_for(me, 7)
    for widths in ((264,), (264, 24)):
        operation = Operation.random(me, 7, widths, dtype)
        # The squares are subnormal, and so are the results.
        operation.rows.mul_(2.0**-70)
        operation.weights = [weight * torch.finfo(dtype).tiny for weight in operation.weights]
        operation.eps = 0.0
        run_twice(me, operation, workspace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_spread_rows_of_subnormals_are_normalised_alike(ranks_of, world_size, dtype):
    ranks_of(world_size).run(normalise_spread_subnormals, dtype)


def handle_a_signal_meanwhile(me: Rank) -> None:
    """Rank 0 is late; rank 1's handler runs while it waits, and changes the setting for what follows."""
    workspace = me.workspace()
    own = torch.full((8,), torch.finfo(torch.float32).tiny / 8)
    if me.rank == 0:
        time.sleep(0.5)
        total = lamport_rs.all_reduce(own, workspace)
    else:
        seen = []

        def handler(*_: object) -> None:
            seen.append(flushes())
            torch.set_flush_denormal(False)

        before = signal.signal(signal.SIGALRM, handler)
        torch.set_flush_denormal(True)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            total = lamport_rs.all_reduce(own, workspace)
            assert not flushes(), "what the handler set is lost"
        finally:
            torch.set_flush_denormal(False)
            signal.signal(signal.SIGALRM, before)
        assert seen == [True], "the handler has not the caller's setting"
    check_same_bits(total, 2 * own)


def test_a_signal_handler_has_the_callers_setting_and_may_change_it(ranks_of):
    ranks_of(2).run(handle_a_signal_meanwhile)


def miss_a_rank(me: Rank) -> None:
    workspace = me.workspace(kept=True, timeout=0.2)
    if me.rank == 1:
        with flushing(), pytest.raises(lamport_rs.LamportTimeoutError):
            lamport_rs.all_reduce(torch.ones(8), workspace)


def test_an_operation_that_fails_gives_the_setting_back(ranks_of):
    ranks_of(2).run(miss_a_rank)
