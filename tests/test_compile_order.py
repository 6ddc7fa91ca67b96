"""No compiler leaves an operation out, moves it past another, merges two that are alike, or runs one again.

Each case compiles another graph on each rank: what looks pure to a compiler is then changed on one of them only, and
the ranks' sums are those of different operations.
"""

import lamport_rs
import pytest
import torch
from ranks import Rank
from torch.utils.checkpoint import checkpoint

EPS = 1e-6


def reduce(x: torch.Tensor, workspace: lamport_rs.LamportWorkspace) -> torch.Tensor:
    return lamport_rs.all_reduce(x, workspace)


def leave_out_what_one_rank_does_not_use(me: Rank, workspace, compiler) -> None:
    weight, settings, twice = torch.ones(16), (me.rank, me.world_size, EPS), 2 * torch.eye(16)

    def work(x):
        half = torch.mm(x, twice)  # no kernel that a compiler would have to write, which takes long
        total = reduce(half, workspace)
        normed, _ = lamport_rs.all_reduce_rms_norm(half, half, weight, workspace)
        rows = lamport_rs.minimax_allreduce_rms(half, weight, workspace, *settings)
        q, _ = lamport_rs.minimax_allreduce_rms_qk(half, weight[:8], weight[8:], workspace, 8, 8, *settings)
        operator = torch.ops.lamport_rs.all_reduce(half, workspace.workspace)
        return (total, normed, rows, q, operator) if me.rank == 0 else half

    found = compiler(work)(torch.ones(2, 16))
    if me.rank == 0:
        assert [each[0, 0].item() for each in found] == pytest.approx([4, 1, 1, 1, 4])


def move_one_past_another(me: Rank, workspace, compiler) -> None:
    matrix = torch.eye(16)

    def work(x, y):
        first = reduce(y, workspace)
        second = reduce(torch.mm(x, matrix), workspace)
        return (second, torch.mm(first, matrix)) if me.rank == 0 else (torch.mm(first, matrix), second)

    outputs = compiler(work)(torch.full((16, 16), 1.0 + me.rank), torch.full((16, 16), 10.0 * (1 + me.rank)))
    second, first = outputs if me.rank == 0 else outputs[::-1]
    assert (first[0, 0].item(), second[0, 0].item()) == (30, 3)


def merge_two_in_a_graph_with_gradients(me: Rank, workspace, compiler) -> None:
    def work(x, bias):
        half = x * 2
        one = reduce(half, workspace)
        other = reduce(half + bias if me.rank == 0 else half, workspace)
        return one + half, other + half

    one, other = compiler(work)(torch.ones(4, 8, requires_grad=True), torch.ones(8))
    assert (one[0, 0].item(), other[0, 0].item()) == (6, 7)
    (one + other).sum().backward()


def run_again_in_the_backward_pass(me: Rank, workspace, compiler) -> None:
    weight = torch.ones(8, requires_grad=True)

    def work(x):
        total = reduce(x * 2, workspace).sin()
        return (total * weight * total).sum() if me.rank == 0 else (total.sum() * weight).sum()

    compiler(work)(torch.ones(4, 8)).backward()
    assert weight.grad is not None


def run_again_for_a_checkpoint(me: Rank, workspace, compiler) -> None:
    weight, twice = torch.eye(16, requires_grad=True), 2 * torch.eye(16)

    def block(x):
        return torch.mm(reduce(torch.mm(x, twice), workspace), weight)

    def work(x):
        return checkpoint(block, x, use_reentrant=False) if me.rank == 0 else block(x)

    compiler(work)(torch.ones(16, 16)).backward(torch.ones(16, 16))
    assert (weight.grad == 4 * 16).all()


CASES = [
    leave_out_what_one_rank_does_not_use,
    move_one_past_another,
    merge_two_in_a_graph_with_gradients,
    run_again_in_the_backward_pass,
    run_again_for_a_checkpoint,
]


def without_dead_code(graph: torch.fx.GraphModule, _inputs: object):
    """A backend of a user's own, which runs what Dynamo has traced."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph.forward


def stay_in_step(me: Rank, case, backend) -> None:
    # The ranks compile different graphs, and one may be late by more than operations usually wait.
    workspace = me.workspace(1 << 16, timeout=40)
    torch._dynamo.reset()
    case(me, workspace, lambda work: torch.compile(work, backend=backend))
    following = lamport_rs.all_reduce(torch.full((4, 8), 10.0 + me.rank), workspace)
    assert following[0, 0].item() == 21, f"the next sum is {following[0, 0].item()}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_ranks_stay_in_step_whatever_a_compiler_would_like_to(ranks_of, case):
    ranks_of(2).run(stay_in_step, case, "aot_eager", timeout=180)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_ranks_stay_in_step_whatever_a_pass_finds_dead(ranks_of, case):
    ranks_of(2).run(stay_in_step, case, without_dead_code, timeout=60)


@pytest.mark.long
@pytest.mark.parametrize("case", [*CASES[:3], run_again_for_a_checkpoint], ids=lambda case: case.__name__)
def test_ranks_stay_in_step_under_inductor(ranks_of, case):
    ranks_of(2).run(stay_in_step, case, "inductor", timeout=300)
