"""CUDA graphs: captured operations, replayed in any order and between eager ones, give the bits of eager ones."""

import gc
import random
import weakref

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from minimax_rows import Operation, workspace_for
from ranks import Rank
from reductions import NormedReduction, QuantisedReduction, QuantisedSum, Reduction, comm_size_for
from worlds import GROUP_SIZES, WORLD_SIZES

CAPTURED = [(tokens, widths) for tokens in (1, 7, 64, 300, 2048) for widths in ((1536,), (3072, 512))]
REDUCED = [(8, "auto"), (3001, "one_shot"), (3001, "two_shot"), (260_000, "one_shot"), (524_288, "two_shot")]
NORMALISED = [(1, 4096, "auto"), (5, 8200, "one_shot"), (5, 8200, "two_shot"), (64, 2048, "two_shot")]
QUANTISED = [(1, 4096, "auto", "fp8_group"), (5, 8192, "one_shot", "fp8_token"), (64, 2048, "two_shot", "fp8_group")]
MOST_BYTES = 1 << 20


def minimax_operations(me: Rank) -> list[Operation]:
    return [Operation.random(me, *shape, seed=seed) for seed, shape in enumerate(CAPTURED)]


def reductions(me: Rank) -> list[Reduction | NormedReduction]:
    return [
        *(Reduction.random(me, *shape, seed=seed) for seed, shape in enumerate(REDUCED)),
        *(NormedReduction.random(me, *shape, seed=seed) for seed, shape in enumerate(NORMALISED)),
        *(kind.random(me, *shape) for kind in (QuantisedReduction, QuantisedSum) for shape in QUANTISED),
    ]


def all_operations(me: Rank) -> list[Operation | Reduction | NormedReduction]:
    return minimax_operations(me)[::2] + reductions(me)


def capture(operations, workspace, stream: torch.cuda.Stream | None = None) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for operation in operations:
            operation(workspace)
    return graph


def replay_in_any_order(me: Rank, make_operations, steps: int) -> None:
    """Static inputs get other rows before each step. All ranks roll the same dice."""
    workspace, side = me.workspace(comm_size_for(me, MOST_BYTES)), torch.cuda.Stream()
    operations = make_operations(me)
    variants, expected = [], []
    for operation in operations:  # Also what warms up.
        own = operation.rows
        variants.append([own.clone(), own.flip(0), own * 2])
        expected.append([])
        for rows in variants[-1]:
            own.copy_(rows)
            operation(workspace)
            operation.check("eager")
            expected[-1].append(operation.results())
    graphs = [
        capture([operation], workspace, side if index % 3 == 0 else None) for index, operation in enumerate(operations)
    ]
    dice, own_dice, differences = random.Random(0), random.Random(me.rank), []
    for _ in range(steps):
        which, variant, way = dice.randrange(len(operations)), dice.randrange(3), dice.randrange(4)
        operation = operations[which]
        operation.rows.copy_(variants[which][variant])
        operation.poison()
        if own_dice.random() < 0.02:
            torch.cuda._sleep(1_000_000)
        if way == 0:
            operation(workspace)
        elif way == 1:
            graphs[which].replay()
        else:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                if way == 2:
                    graphs[which].replay()
                else:
                    operation(workspace)
            torch.cuda.current_stream().wait_stream(side)
        differences.append(operation.differences(expected[which][variant]))
    wrong = torch.stack(differences).nonzero().flatten().tolist()
    assert not wrong, f"{len(wrong)} of {steps} steps gave other bits than eager; the first are {wrong[:10]}"


@pytest.mark.parametrize("make_operations", [minimax_operations, reductions, all_operations])
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_graphs_replayed_between_eager_calls_give_the_same_bits(ranks_of, world_size, make_operations):
    ranks_of(world_size).run(replay_in_any_order, make_operations, 1500)


def capture_unused_kernels(me: Rank) -> None:
    """The process has never run an operation: what it needs is loaded while the stream is being captured."""
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    operations = reductions(me) + [
        Operation.random(me, tokens, widths, dtype, seed=seed)
        for seed, (tokens, widths, dtype) in enumerate(
            [
                (1, (1536,), torch.bfloat16),
                (200, (1536,), torch.bfloat16),
                (600, (128, 64), torch.float16),
                (4, (3072, 512), torch.float32),
                (2, (20_000,), torch.float16),
                (300, (6144, 1024), torch.bfloat16),
            ]
        )
    ]
    graph = capture(operations, workspace)
    for round_ in range(3):
        for operation in operations:
            operation.poison()
        graph.replay()
        torch.cuda.synchronize()
        for operation in operations:
            operation.check(f"replay {round_}")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_kernel_may_be_used_for_the_first_time_inside_a_capture(new_gpu_ranks, world_size):
    new_gpu_ranks(world_size).run(capture_unused_kernels)


def replay_a_model(me: Rank) -> None:
    """As many layers as a model has, in one graph, with kernels of torch between them."""
    workspace, layers = workspace_for(me, 64), 60
    state = Operation.random(me, 16, (3072, 512), torch.bfloat16).rows
    weights = [Operation.random(me, 1, (3072, 512), torch.bfloat16, seed=layer).weights for layer in range(layers)]

    def forward() -> torch.Tensor:
        hidden = state
        for weight in weights:
            settings = (3072, 512, me.rank, me.world_size, 1e-6)
            q, k = torch.ops.lamport_rs.minimax_allreduce_rms_qk(hidden, *weight, workspace.workspace, *settings)
            hidden = torch.cat([q, k], dim=-1).tanh() + hidden
        return hidden

    original, expected = state.clone(), []
    for factor in (1.0, 0.5, -3.0):
        state.copy_(original * factor)
        expected.append(forward())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = forward()
    for index, factor in [(0, 1.0), (1, 0.5), (2, -3.0), (0, 1.0)] * 10:
        state.copy_(original * factor)
        graph.replay()
        assert torch.equal(result, expected[index]), f"a replay with input {index} gave other bits"


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_graph_of_a_whole_model_gives_the_bits_of_the_eager_model(ranks_of, world_size):
    ranks_of(world_size).run(replay_a_model)


def replay_layers(me: Rank, algorithm: str) -> None:
    """The layers of a transformer: two sums each, with the norms that follow, in place, and matrices between them."""
    workspace, layers, hidden = me.workspace(comm_size_for(me, MOST_BYTES)), 40, 2048
    first = NormedReduction.random(me, 12, hidden, algorithm)
    weights = [NormedReduction.random(me, 1, hidden, algorithm, seed=layer).weight for layer in range(layers)]
    settings = {"eps": 1e-6, "weight_bias": 1.0, "algorithm": algorithm}

    def forward() -> torch.Tensor:
        x, residual = first.rows.clone(), first.residual.clone()
        for weight in weights:
            x = lamport_rs.all_reduce(x.tanh(), workspace, algorithm=algorithm) / 2
            lamport_rs.all_reduce_rms_norm(x, residual, weight, workspace, **settings, out=x, residual_out=residual)
        return torch.cat([x, residual])

    original, expected = first.rows.clone(), []
    for factor in (1.0, 0.5, -3.0):
        first.rows.copy_(original * factor)
        expected.append(forward())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = forward()
    for index, factor in [(0, 1.0), (1, 0.5), (2, -3.0), (0, 1.0)] * 10:
        first.rows.copy_(original * factor)
        graph.replay()
        assert torch.equal(result, expected[index]), f"a replay with input {index} gave other bits"


@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot"])
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_graph_of_sums_and_norms_gives_the_bits_of_the_eager_layers(ranks_of, world_size, algorithm):
    ranks_of(world_size).run(replay_layers, algorithm)


def fork_and_join(me: Rank) -> None:
    """A capture that spans two streams: the library orders its operations there too."""
    workspace, side = workspace_for(me, 1024), torch.cuda.Stream()
    operations = [Operation.random(me, 3 + seed, (1536, 256), seed=seed) for seed in range(8)]
    expected = [[result.clone() for result in operation(workspace)] for operation in operations]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        for index, operation in enumerate(operations):
            with torch.cuda.stream(side if index % 2 else main):
                operation(workspace)
        main.wait_stream(side)
    for round_ in range(30):
        for operation in operations:
            operation.poison()
        graph.replay()
        operations[0](workspace)
        for operation, results in zip(operations, expected, strict=True):
            operation.check_against(results, f"round {round_}")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_capture_may_span_streams(ranks_of, world_size):
    ranks_of(world_size).run(fork_and_join)


def keep_only_the_graph(me: Rank) -> None:
    """The workspace goes, with its table, and as many are made and go after it as would reuse its memory."""
    operations = all_operations(me)
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    expected = []
    for operation in operations:
        operation(workspace)
        expected.append(operation.results())
    graph = capture(operations, workspace)
    gone = weakref.ref(workspace)
    del workspace
    gc.collect()
    assert gone() is None
    for seed in range(3):
        with me.workspace(comm_size_for(me, MOST_BYTES)) as another:
            operation = Operation.random(me, 7, (1536,), seed=seed)
            operation(another)
            operation.check("with another workspace")
        del another
        for each in operations:
            each.poison()
        graph.replay()
        for index, each in enumerate(operations):
            each.check_against(expected[index], f"operation {index}")
        dist.barrier()


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_graph_keeps_the_memory_that_it_uses(ranks_of, world_size):
    ranks_of(world_size).run(keep_only_the_graph)


def go_while_a_stream_captures(me: Rank) -> None:
    """A workspace that is cleaned up, or collected, does not spoil a capture."""
    kept, rows = workspace_for(me, 64), torch.ones(64, device=me.device)
    out = torch.empty_like(rows)
    for way in ("cleanup", "collection"):
        other = workspace_for(me, 64)
        lamport_rs.all_reduce(rows, other)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            lamport_rs.all_reduce(rows, kept, out=out)
            if way == "cleanup":
                other.cleanup()
            del other
            gc.collect()
            lamport_rs.all_reduce(out, kept, out=out)
        graph.replay()
        kept.synchronize()
        assert out.tolist() == [float(me.world_size**2)] * 64
        dist.barrier()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_workspace_may_go_while_a_stream_captures(ranks_of, world_size):
    ranks_of(world_size).run(go_while_a_stream_captures)
