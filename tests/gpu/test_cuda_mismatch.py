"""Ranks that do different things on GPUs: an error on every rank, and NaN where a number could have been."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportMismatchError
from mismatches import (
    COMPILED_AND_REFUSED,
    DIFFERENT,
    REFUSED,
    check_that_rank_0_heard_of_it,
    check_that_they_differ,
    go_on_after_a_refusal,
    refuse_on_all_ranks,
    total,
)
from ranks import Rank

ROUNDS = 3
"""Replays of a graph whose operations differ."""


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("world_size", [pytest.param(n, marks=pytest.mark.gpu(n)) for n in (2, 3)])
def test_ranks_whose_calls_differ_all_hear_of_it(ranks_of, world_size, name):
    texts = ranks_of(world_size).run(check_that_they_differ, name)
    assert all("the ranks differ: rank" in text for text in texts)


def leave_nan(me: Rank, name: str) -> None:
    """Without a call of the package that could raise: torch alone looks at the results."""
    others, rank_1s, _ = DIFFERENT[name]
    workspace = me.workspace(4 << 20, timeout=5)
    total()(me, workspace)
    result = (rank_1s if me.rank == 1 else others)(me, workspace)
    torch.cuda.synchronize()
    assert bool(result.isnan().all()), f"{result.isnan().sum()} of {result.numel()} are NaN: {result}"
    with pytest.raises(LamportMismatchError):
        workspace.synchronize()


@pytest.mark.gpu(2)
@pytest.mark.parametrize("name", [name for name in DIFFERENT if name != "nothing"])
def test_results_of_operations_that_differ_are_nan(ranks_of, name):
    ranks_of(2).run(leave_nan, name)


@pytest.mark.gpu(2)
@pytest.mark.parametrize("name", {**REFUSED, **COMPILED_AND_REFUSED})
def test_a_rank_that_goes_on_after_a_refused_call_parts_the_ranks_with_an_error_on_all(ranks_of, name):
    check_that_rank_0_heard_of_it(ranks_of(2).run(go_on_after_a_refusal, name)[0])


@pytest.mark.gpu(2)
@pytest.mark.parametrize("name", {**REFUSED, **COMPILED_AND_REFUSED})
def test_a_call_that_all_ranks_refuse_changes_nothing(ranks_of, name):
    assert ranks_of(2).run(refuse_on_all_ranks, name) == [[2.0] * 8] * 2


def replay(me: Rank, refuse: bool) -> list[list[float]]:
    """Graphs that differ in an operation, or in one that rank 1 refused while it captured."""
    workspace = me.workspace(1 << 16, timeout=5)
    x = torch.ones(8, device=me.device)
    total()(me, workspace)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = lamport_rs.all_reduce(x, workspace)
        if refuse and me.rank == 1:
            with pytest.raises(lamport_rs.LamportError):
                lamport_rs.all_reduce(torch.ones(8, dtype=torch.int32, device=me.device), workspace)
        elif refuse:
            lamport_rs.all_reduce(x, workspace)
        last = lamport_rs.all_reduce(x[:4] if me.rank == 1 and not refuse else x, workspace)
    results = []
    for _ in range(ROUNDS):
        graph.replay()
        torch.cuda.synchronize()
        results.append([first[0].item(), last[0].item()])
    with pytest.raises(LamportMismatchError):
        workspace.synchronize()
    return results


@pytest.mark.gpu(2)
@pytest.mark.parametrize("refuse", [False, True], ids=["another operation", "one that a rank refused"])
def test_replays_of_graphs_that_differ_leave_nan_from_there_on(ranks_of, refuse):
    for results in ranks_of(2).run(replay, refuse):
        assert results[0][0] == 2.0
        assert all(last != last for _, last in results), results
        assert all(first != first for first, _ in results[1:]), results


def replay_in_step(me: Rank) -> list[float]:
    """Numbers go on over eager calls and replays, and over calls that all ranks refuse."""
    workspace = me.workspace(1 << 16, timeout=5)
    x = torch.ones(8, device=me.device)
    graph = torch.cuda.CUDAGraph()
    lamport_rs.all_reduce(x, workspace)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = [lamport_rs.all_reduce(x, workspace) for _ in range(5)]
    sums = []
    for _ in range(4):
        graph.replay()
        with pytest.raises(lamport_rs.LamportError):
            lamport_rs.all_reduce(torch.ones(8, dtype=torch.int32, device=me.device), workspace)
        sums.append(lamport_rs.all_reduce(x, workspace)[0].item())
        sums.extend(result[0].item() for result in captured)
    workspace.synchronize()
    return sums


@pytest.mark.gpu(2)
def test_graphs_eager_calls_and_common_refusals_stay_in_step(ranks_of):
    assert ranks_of(2).run(replay_in_step) == [[2.0] * 24] * 2


def time_out(me: Rank) -> str:
    # Rank 1's return is no teardown, of which rank 0 would hear before its time is up.
    workspace = me.workspace(1 << 16, timeout=0.5, kept=True)
    total()(me, workspace)
    if me.rank == 1:
        torch.cuda.synchronize()
        return ""
    result = total(16, torch.bfloat16)(me, workspace)
    torch.cuda.synchronize()
    assert bool(result.isnan().all()), result
    with pytest.raises(lamport_rs.LamportTimeoutError) as caught:
        workspace.synchronize()
    return str(caught.value)


@pytest.mark.gpu(2)
def test_a_timeout_says_what_this_rank_was_doing_and_leaves_nan(ranks_of):
    text = ranks_of(2).run(time_out)[0]
    assert text.startswith("operation 2, all_reduce of 16 bfloat16, one_shot (digest "), text
