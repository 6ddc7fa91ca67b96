"""Ranks that do not come: kernels end, and what they missed is an error that names the rank."""

import gc
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportAbortedError, LamportError, LamportTimeoutError, LamportWorkspace
from minimax_rows import Operation, workspace_for
from ranks import SHARING, Failure, Rank, results_of
from reductions import NormedReduction, Reduction, comm_size_for
from worlds import GROUP_SIZES, WORLD_SIZES

TIMEOUT = 0.5
SLACK = 1.5
"""Seconds that a busy machine may take longer."""
BEGIN_APART = 0.1
"""Seconds by which a rank is behind another after a barrier, at most."""
MOST_BYTES = 6 << 20
OPERATIONS = 5
"""Enough that each slot is used again."""


def minimax(me: Rank, tokens: int) -> Operation:
    return Operation.random(me, tokens, (256, 64))


def sum_in_one_shot(me: Rank, elements: int) -> Reduction:
    return Reduction.random(me, elements, "one_shot")


def sum_in_two_shots(me: Rank, elements: int) -> Reduction:
    return Reduction.random(me, elements, "two_shot")


def norm_in_one_shot(me: Rank, tokens: int) -> NormedReduction:
    return NormedReduction.random(me, tokens, 1024, "one_shot")


def norm_in_two_shots(me: Rank, tokens: int) -> NormedReduction:
    return NormedReduction.random(me, tokens, 1024, "two_shot")


IN_TWO_SHOTS = (sum_in_two_shots, norm_in_two_shots)


def start_anew(me: Rank) -> None:
    workspace = workspace_for(me, 64)
    operation = Operation.random(me, 64, (256, 64), seed=1)
    operation(workspace)
    operation.check("after a fault")


def refuse(operation, call, match: str | None = None) -> None:
    """Make a call of the operation that is refused, and find NaN where it had put numbers."""
    operation.fill(1)
    with pytest.raises(LamportError, match=match):
        call()
    torch.cuda.synchronize()
    assert all(result.isnan().all() for result in operation.results()), "what was refused left a number"


def wait_in_vain(me: Rank, absent: int, make, size: int, way: str) -> tuple[float, tuple[int, ...]] | None:
    """Good rounds, then one to which a rank does not come."""
    workspace = me.workspace(comm_size_for(me, MOST_BYTES), timeout=TIMEOUT)
    operation, graph = make(me, size), torch.cuda.CUDAGraph()
    for _ in range(5):
        operation(workspace)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        operation(workspace)
    dist.barrier()
    outcome = None
    if me.rank != absent:
        started = time.monotonic()
        if way == "replay":
            graph.replay()
        else:
            operation(workspace)
        if way == "synchronize":
            with pytest.raises(LamportTimeoutError, match="create a new one") as caught:
                workspace.synchronize()
        else:
            torch.cuda.synchronize()
            with pytest.raises(LamportTimeoutError, match="create a new one") as caught:
                operation(workspace)
        waited = time.monotonic() - started
        torch.cuda.synchronize()
        assert time.monotonic() - started < waited + 0.2, "the kernel went on after the error"
        for refused in (lambda: operation(workspace), lambda: operation(workspace.workspace)):
            refuse(operation, refused, match=r"failed earlier and can no longer be used \(.*waited")
        for asked in (workspace.synchronize, workspace.check):
            with pytest.raises(LamportTimeoutError, match="waited"):
                asked()
        assert time.monotonic() - started < waited + TIMEOUT, "a refusal waits"
        outcome = waited, caught.value.missing_ranks
    dist.barrier()
    workspace.cleanup()
    start_anew(me)
    return outcome


@pytest.mark.parametrize("way", ["synchronize", "next call", "replay"])
@pytest.mark.parametrize(
    ("make", "size"),
    [
        *[(minimax, tokens) for tokens in (1, 700, 16384)],
        *[(make, elements) for make in (sum_in_one_shot, sum_in_two_shots) for elements in (3, 3_000_000)],
        *[(make, tokens) for make in (norm_in_one_shot, norm_in_two_shots) for tokens in (1, 2500)],
    ],
)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_missing_rank_is_named_after_the_timeout_and_a_new_workspace_works(ranks_of, world_size, make, size, way):
    absent = world_size - 1
    outcomes = ranks_of(world_size).run(wait_in_vain, absent, make, size, way)
    assert outcomes[absent] is None
    for waited, missing in outcomes[:absent]:
        assert missing == (absent,)
        # However many waves of blocks the grid takes, they wait but once. Whoever began first tells the others.
        assert TIMEOUT - BEGIN_APART <= waited < TIMEOUT + SLACK
    assert max(waited for waited, _ in outcomes[:absent]) >= TIMEOUT


def fall_behind(me: Rank, make, size: int, way: str) -> tuple[int, ...]:
    """Several operations at once, to which the last rank comes when the others have given up and gone through them."""
    operations = [make(me, size) for _ in range(OPERATIONS)]
    for index, operation in enumerate(operations):
        # A sum of two operations' data must be no sum of one's.
        operation.rows *= index + 1
    good, graph = me.workspace(comm_size_for(me, MOST_BYTES)), torch.cuda.CUDAGraph()
    expected = []
    for operation in operations:
        operation(good)
        expected.append(operation.results())
        operation.poison()
    workspace = me.workspace(comm_size_for(me, MOST_BYTES), timeout=TIMEOUT)
    torch.cuda.synchronize()

    def run() -> None:
        for operation in operations:
            operation(workspace)

    if way == "replay":
        with torch.cuda.graph(graph):
            run()
    dist.barrier()
    is_late = me.rank == me.world_size - 1
    if is_late:
        time.sleep(3 * TIMEOUT)
    if is_late and way == "enqueue":
        # The others have told what they found.
        with pytest.raises(LamportTimeoutError, match="create a new one") as caught:
            run()
        dist.barrier()
        return caught.value.missing_ranks
    run() if way == "enqueue" else graph.replay()
    with pytest.raises(LamportTimeoutError, match="create a new one") as caught:
        workspace.synchronize()
    if is_late and make not in IN_TWO_SHOTS:
        # All had sent their part of the first operation before they gave up.
        operations[0].check_against(expected[0], "the late rank's first operation")
    for index, operation in enumerate(operations[1:], start=1):
        assert operation.differences(expected[index]) > 0, f"operation {index} has a result after the error"
    dist.barrier()
    return caught.value.missing_ranks


@pytest.mark.parametrize("way", ["enqueue", "replay"])
@pytest.mark.parametrize(
    ("make", "size"),
    [
        *[(minimax, tokens) for tokens in (1, 700)],
        *[(make, elements) for make in (sum_in_one_shot, sum_in_two_shots) for elements in (3, 600_000)],
        *[(make, tokens) for make in (norm_in_one_shot, norm_in_two_shots) for tokens in (4, 200)],
    ],
)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_what_follows_an_error_never_reaches_a_late_rank(ranks_of, world_size, make, size, way):
    outcomes = ranks_of(world_size).run(fall_behind, make, size, way)
    late = world_size - 1
    for missing in outcomes[:late]:
        assert missing == (late,)
    # It hears from the others that they have missed it.
    assert outcomes[late] == (late,)


def come_late(me: Rank, make, size: int, timeout: float) -> None:
    """Later than a moment, and earlier than the timeout."""
    workspace = me.workspace(comm_size_for(me, MOST_BYTES), timeout=timeout)
    for late in range(me.world_size):
        operation = make(me, size)
        operation.poison()
        torch.cuda.synchronize()
        if me.rank == late:
            time.sleep(0.4)
        operation(workspace)
        workspace.synchronize()
        operation.check(f"rank {late} came late")


@pytest.mark.parametrize("timeout", [0, 10])
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (minimax, 300),
        (sum_in_one_shot, 600_000),
        (sum_in_two_shots, 600_000),
        (norm_in_one_shot, 200),
        (norm_in_two_shots, 200),
    ],
)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_late_rank_is_waited_for(ranks_of, world_size, make, size, timeout):
    ranks_of(world_size).run(come_late, make, size, timeout)


def work_until_an_error(me: Rank, way: str, timeout: float, at_work: Path) -> tuple[LamportError, float, int]:
    """The error, when it was raised, and how many outputs are then neither right nor NaN.

    A file in `at_work` says that this rank has done some.
    """
    workspace, graph = workspace_for(me, 64, timeout=timeout), torch.cuda.CUDAGraph()
    operation = Operation.random(me, 64, (256, 64))
    operation(workspace)
    torch.cuda.synchronize()
    expected = operation.results()

    def do() -> None:
        operation.fill(1)
        operation(workspace)

    with torch.cuda.graph(graph):
        for _ in range(OPERATIONS):
            do()
    dist.barrier()
    try:
        while True:
            graph.replay() if way == "replay" else do()
            workspace.synchronize()
            (at_work / str(me.rank)).touch()
    except LamportError as error:
        raised = time.monotonic()
        pairs = zip(operation.results(), expected, strict=True)
        return error, raised, sum(int((~out.isnan() & (out != right)).sum()) for out, right in pairs)


def be_there(me: Rank) -> int:
    torch.zeros(1, device=me.device)
    return me.rank


def start_work(ranks, way: str, timeout: float, at_work: Path) -> None:
    """Start `work_until_an_error`, and return in the midst of it."""
    ranks.run(be_there)
    ranks.start(work_until_an_error, way, timeout, at_work)
    most = time.monotonic() + 60
    while len(list(at_work.iterdir())) < ranks.world_size:
        assert time.monotonic() < most, "the ranks have done nothing"
        time.sleep(0.01)
    time.sleep(0.5)


FREED_AFTER = 1.0 if SHARING else 0.05
"""Seconds after which kernels that wait have heard of a fault of another rank, and have ended. Ranks that share a GPU
take turns of milliseconds."""
STOPPED_AFTER = 1.0
"""Likewise of a death, or of an interpreter that ends: it tells when its own kernels have ended."""
RESET_MOST = 1.0 if SHARING else 0.005
"""Seconds that a reset of slots of 8 MiB per rank takes."""


def call_reset(workspace: LamportWorkspace) -> None:
    with pytest.raises(LamportTimeoutError):
        workspace.reset(timeout=1)


def be_refused(workspace: LamportWorkspace) -> None:
    with pytest.raises(LamportError, match="int32"):
        lamport_rs.all_reduce(torch.ones(8, dtype=torch.int32, device="cuda"), workspace)


FAULTS = {
    "abort": (lambda workspace: workspace.abort("enough"), "rank .* has aborted: enough"),
    "clean_up": (lambda workspace: workspace.cleanup(), "rank .* has cleaned its workspace up"),
    "reset": (call_reset, r"rank .* has aborted: it has called reset\(\)"),
    "refusal": (be_refused, "rank .* has refused its call of that number"),
}


def hear_of_a_fault(me: Rank, name: str, make, size: int, way: str) -> float:
    """The time at which this rank meets the fault, or at which its kernels have ended because of it."""
    fault, text = FAULTS[name]
    # No timeout ends them.
    workspace = me.workspace(comm_size_for(me, MOST_BYTES), timeout=0)
    operation, graph = make(me, size), torch.cuda.CUDAGraph()
    operation(workspace)
    torch.cuda.synchronize()
    # Graphs of the tests before, which errors have kept, must not go during the capture: that would spoil it.
    gc.collect()
    with torch.cuda.graph(graph):
        operation(workspace)
    if me.rank == me.world_size - 1:
        dist.barrier()
        time.sleep(0.2)
        met = time.monotonic()
        fault(workspace)
        time.sleep(0.5)
        dist.barrier()
        return met
    for _ in range(2):
        graph.replay() if way == "replay" else operation(workspace)
    dist.barrier()
    torch.cuda.synchronize()
    ended = time.monotonic()
    with pytest.raises(LamportError, match=text) as caught:
        workspace.check()
    assert f"rank {me.world_size - 1} has" in str(caught.value)
    assert all(result.isnan().all() for result in operation.results())
    dist.barrier()
    return ended


@pytest.mark.parametrize("way", ["enqueue", "replay"])
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (minimax, 300),
        (sum_in_one_shot, 3),
        (sum_in_one_shot, 600_000),
        (sum_in_two_shots, 600_000),
        (norm_in_one_shot, 4),
        (norm_in_two_shots, 200),
    ],
)
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_kernels_that_wait_are_freed_by_a_fault_of_another_rank(ranks_of, world_size, name, make, size, way):
    *ended, met = ranks_of(world_size).run(hear_of_a_fault, name, make, size, way)
    assert max(ended) - met < FREED_AFTER, f"freed after {[at - met for at in ended]} s"


def come_too_late(me: Rank, workspace: LamportWorkspace, graph: torch.cuda.CUDAGraph) -> None:
    if me.rank == me.world_size - 1:
        time.sleep(2 * TIMEOUT)
    graph.replay()


def call_another_operation(me: Rank, workspace: LamportWorkspace, graph: torch.cuda.CUDAGraph) -> None:
    if me.rank == me.world_size - 1:
        lamport_rs.all_reduce(torch.ones(8, device=me.device), workspace)
    else:
        graph.replay()


def meet(name: str):
    """The last rank meets a fault while the others replay the graph."""

    def meet_fault(me: Rank, workspace: LamportWorkspace, graph: torch.cuda.CUDAGraph) -> None:
        if me.rank == me.world_size - 1:
            time.sleep(0.1)
            FAULTS[name][0](workspace)
        else:
            graph.replay()

    return meet_fault


BEFORE_A_RESET = {
    **{name: meet(name) for name in ("abort", "reset", "refusal")},
    "timeout": come_too_late,
    "mismatch": call_another_operation,
}


def go_on_after_a_fault(me: Rank, name: str) -> float:
    """Resets, the first after a fault; graphs that were captured before are right again. The first one's time."""
    timeout = TIMEOUT if name == "timeout" else 30
    workspace = me.workspace(me.world_size * (8 << 20), timeout=timeout)
    operations = [make(me, size) for make, size in ((sum_in_one_shot, 600_000), (norm_in_two_shots, 200), (minimax, 7))]
    graph = torch.cuda.CUDAGraph()
    for operation in operations:
        operation(workspace)
    torch.cuda.synchronize()
    expected = [operation.results() for operation in operations]
    gc.collect()
    with torch.cuda.graph(graph):
        for operation in operations:
            operation(workspace)
    dist.barrier()
    BEFORE_A_RESET[name](me, workspace, graph)
    torch.cuda.synchronize()
    if name not in ("reset", "refusal") or me.rank < me.world_size - 1:
        with pytest.raises(LamportError):
            workspace.check()
        for operation in operations:
            refuse(operation, lambda operation=operation: operation(workspace))
    times = []
    for _ in range(3):
        dist.barrier()
        started = time.perf_counter()
        workspace.reset()
        times.append(time.perf_counter() - started)
    for _ in range(7):
        for operation in operations:
            operation.poison()
        graph.replay()
        workspace.synchronize()
        for operation, results in zip(operations, expected, strict=True):
            operation.check_against(results, "after a reset")
    dist.barrier()
    return times[0]


@pytest.mark.parametrize("name", BEFORE_A_RESET)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_reset_makes_graphs_right_again_that_were_captured_before(ranks_of, world_size, name):
    for took in ranks_of(world_size).run(go_on_after_a_fault, name):
        assert took < RESET_MOST


def begin_anew(workspace, operation, expected: list[torch.Tensor]) -> None:
    """Reset the workspace, and find what the operation gave before the fault."""
    workspace.reset()
    operation.poison()
    torch.cuda.synchronize()
    operation(workspace)
    workspace.synchronize()
    operation.check_against(expected, "after a reset")
    dist.barrier()


def be_refused_after_a_fault(me: Rank, make, size: int, where: str) -> None:
    """An operation that is refused in a capture, or on another stream than those before."""
    workspace, stream, graph = me.workspace(4 << 20, timeout=30), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    operation = make(me, size)
    operation(workspace)
    torch.cuda.synchronize()
    expected = operation.results()
    gc.collect()
    dist.barrier()
    if me.rank == 0:
        workspace.abort("enough")
    dist.barrier()
    if where == "capture":
        operation.fill(1)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            # A graph of nothing is a warning.
            torch.zeros(1, device=me.device)
            with pytest.raises(LamportError):
                operation(workspace)
        graph.replay()
        torch.cuda.synchronize()
        assert not any(result.isnan().any() for result in operation.results()), "a call in a capture changed an output"
    else:
        with torch.cuda.stream(stream):
            refuse(operation, lambda: operation(workspace))
        refuse(operation, lambda: operation(workspace))
    begin_anew(workspace, operation, expected)


# With slots of 4 MiB, the larger ones take three launches and more.
@pytest.mark.parametrize("where", ["capture", "stream"])
@pytest.mark.parametrize(
    ("make", "size"),
    [(sum_in_one_shot, 3), (sum_in_one_shot, 3_000_000), (sum_in_two_shots, 3_000_000), (norm_in_one_shot, 2500)],
)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_calls_that_are_refused_in_a_capture_and_on_another_stream(ranks_of, world_size, make, size, where):
    ranks_of(world_size).run(be_refused_after_a_fault, make, size, where)


def be_refused_a_long_sum(me: Rank) -> None:
    """A sum of three launches and more, to which a rank does not come: those of the others wait in the first."""
    workspace = me.workspace(4 << 20, timeout=30)
    operation = sum_in_one_shot(me, 3_000_000)
    operation(workspace)
    torch.cuda.synchronize()
    expected = operation.results()
    dist.barrier()
    if me.rank < me.world_size - 1:
        operation.fill(1)
        operation(workspace)
        dist.barrier()
        with pytest.raises(LamportError, match="enough"):
            workspace.synchronize()
        assert all(result.isnan().all() for result in operation.results()), "a sum without a rank"
    else:
        dist.barrier()
        workspace.abort("enough")
        refuse(operation, lambda: operation(workspace))
    dist.barrier()
    begin_anew(workspace, operation, expected)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_long_operation_of_which_a_rank_is_refused_leaves_no_sum(ranks_of, world_size):
    ranks_of(world_size).run(be_refused_a_long_sum)


@pytest.mark.parametrize("way", ["eager", "replay"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_rank_that_is_killed_is_an_error_on_the_others(new_gpu_ranks, tmp_path, world_size, way):
    ranks, victim = new_gpu_ranks(world_size), world_size - 1
    start_work(ranks, way, 0, tmp_path)
    ranks.signal(victim, signal.SIGKILL)
    ended = time.monotonic()
    outcomes = ranks.finish(30)
    assert isinstance(outcomes[victim], Failure)
    for error, raised, wrong in results_of(outcomes[:victim]):
        assert wrong == 0
        assert isinstance(error, LamportAbortedError)
        assert (error.rank, error.cause) == (victim, "ended")
        print(f"heard of a kill after {raised - ended:.3f} s")
        assert raised - ended < STOPPED_AFTER, "the error came late"


PROGRAM = """
import json, os, sys, time
import lamport_rs, torch
import torch.distributed as dist

rank, world_size, store, way, end = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
torch.cuda.set_device(rank % torch.cuda.device_count())
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
# The interpreter takes it apart when the program ends. No timeout ends what waits.
workspace = lamport_rs.LamportWorkspace(rank, world_size, 1 << 20, timeout=0)
tensor, graph = torch.ones(1000, device="cuda"), torch.cuda.CUDAGraph()
total = lamport_rs.all_reduce(tensor, workspace)
torch.cuda.synchronize()
if way == "replay":
    with torch.cuda.graph(graph):
        lamport_rs.all_reduce(tensor, workspace, out=total)
dist.barrier()
if rank == world_size - 1:
    time.sleep(0.5)
    print(time.monotonic(), flush=True)
    if end == "exception":
        raise RuntimeError("the tokenizer is on fire")
    sys.exit(3) if end == "sys.exit" else os._exit(3)
graph.replay() if way == "replay" else lamport_rs.all_reduce(tensor, workspace, out=total)
torch.cuda.synchronize()
ended = time.monotonic()
try:
    workspace.check()
except lamport_rs.LamportAbortedError as error:
    print(json.dumps([ended, error.rank, error.cause, total.isnan().all().item()]), flush=True)
# The group has lost a rank, and is left as it is.
os._exit(0)
"""


@pytest.mark.parametrize("way", ["eager", "replay"])
@pytest.mark.parametrize("end", ["exception", "sys.exit", "os._exit"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_program_that_ends_is_an_error_on_the_others(tmp_path, world_size, end, way):
    command = [sys.executable, "-c", PROGRAM]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(tmp_path / "store"), way, end],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        *others, (left, said) = [program.communicate(timeout=120) for program in started]
    finally:
        for program in started:
            program.kill()
    assert ("on fire" in said) == (end == "exception"), said
    for line, complaint in others:
        assert line, complaint
        ended, rank, cause, is_nan = json.loads(line)
        assert (rank, cause, is_nan) == (world_size - 1, "ended", True)
        print(f"heard of the end by {end} after {ended - float(left):.3f} s")
        assert ended - float(left) < STOPPED_AFTER, "the kernel ended late"


@pytest.mark.parametrize("way", ["eager", "replay"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_rank_that_is_stopped_is_missed_and_hears_of_it_when_it_goes_on(new_gpu_ranks, tmp_path, world_size, way):
    ranks, victim = new_gpu_ranks(world_size), world_size - 1
    start_work(ranks, way, TIMEOUT, tmp_path)
    ranks.signal(victim, signal.SIGSTOP)
    stopped = time.monotonic()
    time.sleep(TIMEOUT + SLACK)
    ranks.signal(victim, signal.SIGCONT)
    *others, (heard, _, wrong) = results_of(ranks.finish(30))
    assert wrong == 0
    for error, raised, wrong in others:
        assert wrong == 0
        # Whoever found it out first tells the others.
        assert isinstance(error, LamportTimeoutError)
        assert error.missing_ranks == (victim,)
        assert raised - stopped < TIMEOUT + SLACK
    assert isinstance(heard, LamportTimeoutError)
    assert heard.missing_ranks == (victim,)
