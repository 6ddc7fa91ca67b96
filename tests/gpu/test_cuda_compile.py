"""Compiled code on GPUs, with CUDA graphs and without: eager results, every operation once and in order."""

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import check_same_bits
from worlds import WORLD_SIZES

COMPILERS = {
    "aot_eager": {"backend": "aot_eager"},
    "inductor": {"backend": "inductor"},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "cudagraphs": {"backend": "cudagraphs"},
}
EPS = 1e-6


def tensor(me: Rank, value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, device=me.device)


def check_next(me: Rank, workspace: lamport_rs.LamportWorkspace) -> None:
    total = lamport_rs.all_reduce(tensor(me, 10.0 + me.rank, 4, 64), workspace)
    workspace.synchronize()
    expected = 10.0 * me.world_size + sum(range(me.world_size))
    assert total[0, 0].item() == expected, f"the next sum is {total[0, 0].item()} instead of {expected}"


class Layer(torch.nn.Module):
    """Operations between others, on a workspace that is known by itself, by its table or by a buffer."""

    def __init__(self, me: Rank, workspace: lamport_rs.LamportWorkspace, known_by: str) -> None:
        super().__init__()
        self.known_by, self.workspace, self.weight = known_by, workspace, tensor(me, 0.5, 64)
        self.settings = me.rank, me.world_size, EPS
        if known_by == "buffer":
            self.register_buffer("table", workspace.workspace, persistent=False)
        else:
            self.table = workspace.workspace
        self.register_buffer("history", tensor(me, 0.0, 4, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.known_by == "workspace":
            total = lamport_rs.all_reduce(x * 2, self.workspace)
            out, residual = lamport_rs.all_reduce_rms_norm(total, x, self.weight, self.workspace, EPS)
            rows = lamport_rs.minimax_allreduce_rms(out, self.weight, self.workspace, *self.settings)
        else:
            operators = torch.ops.lamport_rs
            total = operators.all_reduce(x * 2, self.table)
            out, residual = operators.all_reduce_rms_norm(total, x, self.weight, self.table, EPS)
            rows = operators.minimax_allreduce_rms(out, self.weight, self.table, *self.settings)
        self.history.add_(total)  # a buffer that is written in every step
        return rows + residual + self.history


def run_a_layer(me: Rank, compiler: str, known_by: str) -> int:
    workspace = me.workspace(1 << 20, timeout=120)
    torch._dynamo.reset()
    eager, layer = (Layer(me, workspace, known_by) for _ in range(2))
    compiled = torch.compile(layer, **COMPILERS[compiler])
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        for step in range(8):  # Graphs are recorded in the second run, and replayed from then on.
            x = tensor(me, 1.0 + me.rank + step, 4, 64)
            torch.compiler.cudagraph_mark_step_begin()
            found = compiled(x).clone()
            expected = eager(x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer.history, eager.history)
    check_next(me, workspace)
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


@pytest.mark.parametrize("known_by", ["workspace", "table", "buffer"])
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_a_compiled_layer_gives_eager_results_in_every_run(ranks_of, world_size, compiler, known_by):
    skips = ranks_of(world_size).run(run_a_layer, compiler, known_by, timeout=300)
    if compiler == "reduce-overhead":
        # Otherwise the test would say nothing of tables that CUDA graphs copy.
        assert skips == [0] * world_size, "no CUDA graph was recorded"


def replace_the_workspace(me: Rank) -> None:
    torch._dynamo.reset()
    layer = Layer(me, me.workspace(1 << 20, timeout=120), "workspace")
    compiled = torch.compile(layer, mode="reduce-overhead")
    with torch.inference_mode():
        for generation in range(2):
            for step in range(4):
                torch.compiler.cudagraph_mark_step_begin()
                layer.history.zero_()
                x = tensor(me, 1.0 + me.rank + step, 4, 64)
                found = compiled(x).clone()
                layer.history.zero_()
                torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5, msg=f"workspace {generation}, {step}")
            old, layer.workspace = layer.workspace, me.workspace(1 << 20, timeout=120)
            layer.table = layer.workspace.workspace
            old.synchronize()
    check_next(me, layer.workspace)


@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_a_compiled_layer_may_be_given_another_workspace(ranks_of, world_size):
    ranks_of(world_size).run(replace_the_workspace, timeout=300)


def leave_out(me: Rank, workspace, compiled) -> None:
    def work(x):
        total = lamport_rs.all_reduce(x * 2, workspace)
        return total + 1 if me.rank == 0 else x * 3

    for _ in range(3):
        compiled(work)(tensor(me, 1.0, 4, 64))


def reorder(me: Rank, workspace, compiled) -> None:
    matrix = torch.eye(64, device=me.device)

    def work(x, y):
        first = lamport_rs.all_reduce(y, workspace)
        second = lamport_rs.all_reduce(torch.mm(x, matrix), workspace)
        return (second, torch.mm(first, matrix)) if me.rank == 0 else (torch.mm(first, matrix), second)

    for _ in range(3):
        outputs = compiled(work)(tensor(me, 1.0, 64, 64), tensor(me, 10.0, 64, 64))
        second, first = outputs if me.rank == 0 else outputs[::-1]
        assert (first[0, 0].item(), second[0, 0].item()) == (10.0 * me.world_size, me.world_size)


def merge(me: Rank, workspace, compiled) -> None:
    def work(x, bias):
        half = x * 2
        one = lamport_rs.all_reduce(half, workspace)
        other = lamport_rs.all_reduce(half + bias if me.rank == 0 else half, workspace)
        return one + half, other + half

    for _ in range(3):
        # A new input each time: its gradient lies in memory that the next replay writes again.
        x = tensor(me, 1.0, 4, 64).requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        one, other = compiled(work)(x, tensor(me, 1.0, 64))
        assert (one[0, 0].item(), other[0, 0].item()) == (2 * me.world_size + 2, 2 * me.world_size + 3)
        (one + other).sum().backward()


def stay_in_step(me: Rank, case, compiler: str) -> None:
    workspace, made = me.workspace(1 << 20, timeout=120), {}
    torch._dynamo.reset()

    def compiled(work):
        return made.setdefault(work.__name__, torch.compile(work, **COMPILERS[compiler]))

    case(me, workspace, compiled)
    check_next(me, workspace)


@pytest.mark.parametrize("case", [leave_out, reorder, merge], ids=lambda case: case.__name__)
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_ranks_stay_in_step_whatever_a_compiler_would_like_to(ranks_of, world_size, compiler, case):
    ranks_of(world_size).run(stay_in_step, case, compiler, timeout=300)


def change_shapes(me: Rank, compiler: str) -> None:
    workspace = me.workspace(1 << 20, timeout=120)
    torch._dynamo.reset()

    def work(x):
        return lamport_rs.all_reduce(x[1:].clone(), workspace) * 2

    compiled = torch.compile(work, dynamic=True, **COMPILERS[compiler])
    for tokens in (3, 5, 17, 3):
        x = torch.arange(float(tokens), device=me.device) + me.rank
        check_same_bits(compiled(x).clone(), work(x), f"{tokens} tokens, misaligned")


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor", "reduce-overhead"])
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_shapes_may_be_dynamic_and_views_misaligned(ranks_of, world_size, compiler):
    ranks_of(world_size).run(change_shapes, compiler, timeout=300)


def lay_out_otherwise(me: Rank) -> None:
    workspace, settings = me.workspace(1 << 20, timeout=30), (me.rank, me.world_size, EPS)
    rows = torch.rand(64, 64, device=me.device)
    memory = torch.empty(65, device=me.device)
    for step in range(50):
        weight = torch.rand(64, device=me.device)
        expected = lamport_rs.minimax_allreduce_rms(rows, weight.clone(), workspace, *settings)
        torch.cuda.synchronize()
        memory[1:].copy_(weight)
        # The kernel reads weights early: the copy of this one must have ended by then.
        found = lamport_rs.minimax_allreduce_rms(rows, memory[1:], workspace, *settings)
        check_same_bits(found, expected, f"step {step}: a misaligned weight")
        into = torch.empty(64, 128, device=me.device)[:, 1:65]
        assert lamport_rs.all_reduce(rows.t(), workspace, out=into) is into
        check_same_bits(into.contiguous(), lamport_rs.all_reduce(rows.t().contiguous(), workspace))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_operands_may_lie_in_memory_as_they_like(ranks_of, world_size):
    ranks_of(world_size).run(lay_out_otherwise)
