"""Under torch.compile the functions become operators: one graph, and the same results."""

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import check_same_bits, random_tensor

EPS = 1e-6


def calls_of(me: Rank, workspace: lamport_rs.LamportWorkspace):
    """Functions of one tensor, each with an operation in the middle."""
    weight, settings = torch.ones(32) * 0.5, (me.rank, me.world_size, EPS)

    def reduce(x):
        return lamport_rs.all_reduce(x * 2, workspace) + 1

    def reduce_into(x):
        out = torch.empty_like(x)
        lamport_rs.all_reduce(x, workspace, out=out)
        return out * 3

    def norm(x):
        out, residual = lamport_rs.all_reduce_rms_norm(x + 1, x, weight, workspace, EPS)
        return out - residual

    def norm_into(x):
        out, residual = torch.empty_like(x), x.clone()
        lamport_rs.all_reduce_rms_norm(x, residual, weight, workspace, EPS, out=out, residual_out=residual)
        return out, residual

    def reduce_by(x):
        return lamport_rs.all_reduce(x, workspace, algorithm="one_shot") * 2

    def norm_by(x):
        out, residual = lamport_rs.all_reduce_rms_norm(x, x, weight, workspace, EPS, 1.0, algorithm="one_shot")
        return out + residual

    def minimax(x):
        return lamport_rs.minimax_allreduce_rms(x * 0.5, weight, workspace, *settings) + x

    def minimax_qk(x):
        q, k = lamport_rs.minimax_allreduce_rms_qk(x, weight[:16], weight[:8], workspace, 16, 8, *settings)
        return q.sum(-1) + k.sum(-1)

    def operators(x):
        table = workspace.workspace
        total = torch.ops.lamport_rs.all_reduce(x, table)
        return torch.ops.lamport_rs.minimax_allreduce_rms(total, weight, table, *settings)

    return [reduce, reduce_into, norm, norm_into, reduce_by, norm_by, minimax, minimax_qk, operators]


def compare_with_eager(me: Rank, backend: str) -> int:
    workspace = me.workspace()
    functions = calls_of(me, workspace)
    x = random_tensor((6, 32), torch.float32, me.rank)
    for function in functions:
        before, expected = x.clone(), function(x)
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        for _ in range(2):
            found = compiled(x)
            pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
            for one, other in pairs:
                check_same_bits(one, other, f"{function.__name__} under {backend}")
        check_same_bits(x, before, f"the input of {function.__name__}")
    return len(functions)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_every_operation_compiles_into_one_graph_with_the_same_results(ranks_of, backend):
    assert ranks_of(2).run(compare_with_eager, backend, timeout=120) == [9, 9]


def pass_bad_outputs(me: Rank, backend: str) -> None:
    """The same calls with and without the compiler: the same errors, and no output changed."""
    workspace = me.workspace(4096, timeout=10)
    x, weight, settings = torch.ones(2, 16), torch.ones(16), (me.rank, me.world_size, EPS)

    def reduce(out):
        return lamport_rs.all_reduce(x, workspace, out=out)

    def norm(out):
        return lamport_rs.all_reduce_rms_norm(x, x, weight, workspace, EPS, out=out)

    def norm_residual(out):
        return lamport_rs.all_reduce_rms_norm(x, x, weight, workspace, EPS, residual_out=out)

    def minimax(out):
        return lamport_rs.minimax_allreduce_rms(x, weight, workspace, *settings, out=out)

    def minimax_q(out):
        return lamport_rs.minimax_allreduce_rms_qk(
            torch.ones(2, 24), weight, weight[:8], workspace, 16, 8, *settings, q_out=out
        )

    bad = [
        (torch.zeros(2, 16, dtype=torch.float16), "float16, but must be .*float32"),
        (torch.zeros(3, 2, 16), r"has shape \[3, 2, 16\], but must have \[2, 16\]"),
        (torch.zeros(16).expand(2, -1), "has elements that share memory"),
        (0.0, "must be a torch.Tensor, not float"),
    ]
    for function in (reduce, norm, norm_residual, minimax, minimax_q):
        for out, text in bad:
            for call in (function, torch.compile(function, backend=backend)):
                with pytest.raises(lamport_rs.LamportError, match=text):
                    call(out)
            # What did not compile once runs as it is from then on.
            torch._dynamo.reset()
            with pytest.raises(torch._dynamo.exc.Unsupported, match=text):
                torch.compile(function, backend=backend, fullgraph=True)(out)
            torch._dynamo.reset()
            assert not isinstance(out, torch.Tensor) or not out.any()
    check_same_bits(lamport_rs.all_reduce(x, workspace), x * me.world_size, "the next sum")


@pytest.mark.long
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_output_that_eager_code_refuses_is_refused_under_the_compiler(ranks_of, backend):
    ranks_of(2).run(pass_bad_outputs, backend, timeout=120)


def change_shapes(me: Rank) -> None:
    workspace = me.workspace()
    compiled = torch.compile(
        lambda x: lamport_rs.all_reduce(x, workspace), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for tokens in (3, 5, 17):
        x = random_tensor((tokens, 8), torch.bfloat16, me.rank, tokens)
        check_same_bits(compiled(x), lamport_rs.all_reduce(x, workspace), f"{tokens} tokens")


def test_shapes_may_be_dynamic(ranks_of):
    ranks_of(2).run(change_shapes)


@pytest.mark.parametrize("columns", [32, 40])
def test_shapes_are_known_without_running(columns):
    """On tensors without memory, where tracers look."""
    meta = {"device": "meta", "dtype": torch.bfloat16}
    x, weight, table = torch.empty(6, columns, **meta), torch.empty(columns, **meta), torch.empty(8, **meta).long()
    operators = torch.ops.lamport_rs
    strided = torch.empty(6, 2 * columns, **meta)[:, :columns]
    outputs = [
        (operators.all_reduce(x, table), x.shape),
        (operators.all_reduce(x, table, "two_shot"), x.shape),
        (operators.all_reduce_rms_norm(x, x, weight, table)[0], x.shape),
        (operators.all_reduce_rms_norm(x, x, weight, table, EPS, 1.0, "two_shot")[0], x.shape),
        (operators.all_reduce_rms_norm(x, x, weight, table)[1], x.shape),
        (operators.minimax_allreduce_rms(strided, weight, table, 0, 2, EPS), x.shape),
        (operators.minimax_allreduce_rms_qk(x, weight[:16], weight[:8], table, 16, 8, 0, 2, EPS)[0], (6, 16)),
        (operators.minimax_allreduce_rms_qk(x, weight[:16], weight[:8], table, 16, 8, 0, 2, EPS)[1], (6, 8)),
    ]
    for output, shape in outputs:
        assert output.shape == shape
        assert output.dtype == torch.bfloat16
        assert output.is_contiguous()


def ask_within(me: Rank, dynamic: bool | None) -> None:
    """Whether a call will be served is a constant of the graph, which serves more than one number of rows."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    workspace, weight = me.workspace(4096), torch.ones(32)

    def ask_for_sum(x: torch.Tensor) -> torch.Tensor:
        return lamport_rs.all_reduce(x, workspace) if workspace.supports(x, algorithm="auto") else x

    def ask_for_norm(x: torch.Tensor) -> torch.Tensor:
        options = {"residual": None, "weight": weight[: x.shape[-1]], "eps": EPS}
        if workspace.supports(x, "all_reduce_rms_norm", **options):
            return lamport_rs.all_reduce_rms_norm(x, workspace=workspace, **options)[0]
        return x

    for function in (ask_for_sum, ask_for_norm):
        graphs.clear()
        compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=dynamic)
        for rows in (40, 41, 300, 77, 1000):
            x = random_tensor((rows, 32), torch.float32, me.rank)
            check_same_bits(compiled(x), function(x), f"{function.__name__}, {rows} rows")
        assert len(graphs) == (1 if dynamic else 2), function.__name__
        for refused in (torch.ones(8, 32).double(), torch.ones(8, 12, dtype=torch.int32)):
            assert compiled(refused) is refused
    assert compiled(odd := torch.ones(8, 12)) is odd, "a row is no whole number of vectors"
    compiled = torch.compile(lambda x: x * workspace.memory_bytes, fullgraph=True, backend="eager")
    assert compiled(torch.ones(())) == workspace.memory_bytes


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_workspace_is_asked_within_one_graph(ranks_of, dynamic):
    ranks_of(2).run(ask_within, dynamic)
