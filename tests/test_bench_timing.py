"""What stands between two operations that the benchmark times: nothing, or another kernel. Without a GPU."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lamport_rs.command_line import replay
from lamport_rs.command_line.bench import graphs, measure, options
from lamport_rs.command_line.bench.arguments import (
    BACK_TO_BACK,
    DEFAULT_TIMINGS,
    KERNEL_BETWEEN,
    NORM_BETWEEN,
    PRODUCT_BETWEEN,
    TIMINGS,
    add_arguments,
)
from lamport_rs.command_line.bench.between import Between, NormBetween, ProductBetween
from lamport_rs.command_line.bench.cases import Case, all_reduce_case, decode_case
from lamport_rs.command_line.bench.graphs import GraphTimer, Timed, kernel_between
from lamport_rs.command_line.bench.implementations import Call
from lamport_rs.command_line.bench.implementations.own import Lamport, LamportTwoShot
from lamport_rs.command_line.bench.measure import WrongResultError, run_rank
from lamport_rs.command_line.bench.options import Options, options_from
from lamport_rs.command_line.bench.plot import draw
from lamport_rs.command_line.bench.problems import AllReduce, Expected
from lamport_rs.command_line.bench.record import Record, Row, read, write
from lamport_rs.command_line.bench.report import tables
from lamport_rs.command_line.timing import Latency
from ranks import Rank, errors_of

CASE = all_reduce_case(512, torch.bfloat16)
KERNEL_US = 1.5
LOG: list[float] = []
"""What ran, in microseconds."""


class Graph(replay.Replay):
    """A graph whose operations take what they return, instead of running on a GPU."""

    def _capture(self, operations: int) -> None:
        self.operations = operations

    def settle(self, align) -> None:
        pass


class Taking(Between):
    """A kernel that takes `KERNEL_US`."""

    us = KERNEL_US

    def after(self, result: torch.Tensor) -> None:
        LOG.append(self.us)


class TakingTwice(Taking):
    us = 2 * KERNEL_US


class TakingLong(Taking):
    us = 30.0


def measured(graphs_in_turn, align, replays) -> list[Latency]:
    """What the operations of each graph take, by the log."""
    taken = []
    for graph in graphs_in_turn:
        LOG.clear()
        graph._operation()
        taken.append(sum(LOG))
    return [Latency(us, us - 0.25, us + 0.25) for us in taken]


def taking(microseconds: float, *, in_place: bool = False) -> Call:
    result = torch.full((256,), microseconds)

    def run() -> tuple[torch.Tensor]:
        LOG.append(microseconds)
        return (result,)

    return Call(run, in_place=result if in_place else None)


CALLS = ((Lamport, taking(2.0)), (LamportTwoShot, taking(3.0, in_place=True)))


def time_calls(monkeypatch, timings, refused: str | None = None, case: Case = CASE) -> tuple[list[Timed], list[str]]:
    """What `GraphTimer` finds of calls that take 2 and 3 us, and what it tried to capture."""
    kernels = {"Between": Taking, "NormBetween": TakingTwice, "ProductBetween": TakingLong}
    for name, made_up in {"Replay": Graph, "measure_replays": measured, **kernels}.items():
        monkeypatch.setattr(graphs, name, made_up)
    tried = []

    def attempt(what, action, case):
        tried.append(what)
        return None if refused is not None and refused in what else action()

    values = torch.zeros(256, dtype=torch.bfloat16)
    problem = AllReduce(case, 2, (Expected(values, exact=True),), values)
    calls = [(implementation(None, []), call) for implementation, call in CALLS]
    return GraphTimer(lambda: None, attempt, 3).measure(problem, calls, timings, torch.device("cpu")), tried


def latencies(timed: list[Timed]) -> dict[tuple[str, str], Latency]:
    return {(each.implementation.name, each.timing): each.latency for each in timed}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_kernel_between_reads_all_of_a_result(dtype):
    result = torch.ones(4, 64).to(dtype)
    between = Between(result)
    out = between.after(result)
    assert (out.nbytes, between.alone().shape) == (result.nbytes, out.shape)


def test_the_kernel_between_is_measured_by_itself_and_taken_off(monkeypatch):
    found, _ = time_calls(monkeypatch, TIMINGS)
    own, two_shot = Latency(2.0, 1.75, 2.25), Latency(3.0, 2.75, 3.25)
    assert TIMINGS == (BACK_TO_BACK, KERNEL_BETWEEN, NORM_BETWEEN, PRODUCT_BETWEEN)
    assert latencies(found) == {
        (name, timing): latency
        for timing in TIMINGS
        for name, latency in (("lamport_rs", own), ("lamport_rs_two_shot", two_shot))
    }
    monkeypatch.setattr(graphs.Latency, "less", lambda self, _: self)
    for timing, us in {KERNEL_BETWEEN: KERNEL_US, NORM_BETWEEN: 2 * KERNEL_US, PRODUCT_BETWEEN: 30.0}.items():
        found, _ = time_calls(monkeypatch, (timing,))
        assert [each.latency.median_us for each in found] == [2.0 + us, 3.0 + us], "there is no kernel between"


def test_the_kernel_between_may_be_a_small_norm_or_a_product_that_empties_the_caches(monkeypatch):
    like = torch.zeros(4)
    norm = kernel_between(NORM_BETWEEN, like)
    assert isinstance(norm, NormBetween)
    out = norm.after(like)
    assert out.shape == (8, 4096)
    assert (out == 1).all()
    product = kernel_between(PRODUCT_BETWEEN, like)
    assert isinstance(product, ProductBetween)
    assert product._left.nbytes + product._right.nbytes + product._out.nbytes > 130e6
    monkeypatch.setattr(product, "_right", product._right[:, :16])
    monkeypatch.setattr(product, "_out", product._out[:, :16].contiguous())
    assert (product.alone() == 8192).all()
    assert kernel_between(BACK_TO_BACK, like) is None


@pytest.mark.gpu
@pytest.mark.parametrize("timing", TIMINGS[1:])
def test_every_kernel_between_can_be_captured(timing):
    like = torch.ones(4, 64, device="cuda", dtype=torch.bfloat16)
    between = kernel_between(timing, like)
    expected = between.alone().clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            out = between.after(like)
    out.zero_()
    graph.replay()
    assert out.equal(expected)


def test_without_the_kernels_own_time_nothing_with_it_is_told(monkeypatch):
    found, tried = time_calls(monkeypatch, (KERNEL_BETWEEN,), refused="nothing but the kernel")
    assert found == []
    assert tried == ["all_reduce with nothing but the kernel of kernel_between, in a CUDA graph"]


def test_what_cannot_be_captured_one_way_is_measured_the_other(monkeypatch):
    found, _ = time_calls(monkeypatch, DEFAULT_TIMINGS, refused="by lamport_rs, back_to_back")
    assert list(latencies(found)) == [
        ("lamport_rs_two_shot", BACK_TO_BACK),
        ("lamport_rs", KERNEL_BETWEEN),
        ("lamport_rs_two_shot", KERNEL_BETWEEN),
    ]
    assert {each.latency.median_us for each in found} == {2.0, 3.0}


def test_what_the_timed_operations_leave_is_there_to_be_checked_unless_it_is_in_place(monkeypatch):
    found, _ = time_calls(monkeypatch, TIMINGS)
    left = {each.implementation.name: each.outputs for each in found}
    assert left["lamport_rs"][0].tolist() == 256 * [2.0]
    assert left["lamport_rs_two_shot"] is None


def test_a_graph_has_a_hundred_operations_or_one_step(monkeypatch):
    captured = []
    monkeypatch.setattr(Graph, "_capture", lambda self, operations: captured.append(operations))
    for case in (CASE, decode_case(1, "cuda", 1)):
        time_calls(monkeypatch, (BACK_TO_BACK,), case=case)
    assert captured == [100, 100, 1, 1]


def wrong_when_timed(me: Rank, path: Path) -> None:
    """One implementation is right until it has been timed."""
    timed = []

    def measure_and_note(operations, rounds, device):
        timed.append(True)
        return [Latency(1.0, 1.0, 1.0) for _ in operations]

    prepare = Lamport.prepare

    def wrong_later(self, problem):
        call = prepare(self, problem)
        return Call(lambda: tuple(output + bool(timed) for output in call.run()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_in_turns", measure_and_note)
        patch.setattr(Lamport, "prepare", wrong_later)
        run_rank(me.rank, me.world_size, me.device, Options("host", (2,), ("all_reduce",), sizes=(512,)), path)


def test_a_result_that_is_wrong_after_timing_ends_the_run(ranks_of, tmp_path):
    for error in errors_of(ranks_of(2).try_run(wrong_when_timed, tmp_path / "findings")):
        assert isinstance(error, WrongResultError)
        assert "all_reduce of float32, 512 by lamport_rs is wrong" in str(error)


def test_the_kernel_reads_the_result_and_leaves_it_as_it_is():
    result = torch.tensor([2.0, -4.0])
    between = Between(torch.zeros(2))
    between.after(result)
    assert between._out.tolist() == [1.0, -2.0]
    assert result.tolist() == [2.0, -4.0]
    between.alone()
    assert between._out.tolist() == [0.0, 0.0]


def options_on(backend: str, monkeypatch, *arguments: str):
    monkeypatch.setattr(options, "choose_backend", lambda _: (backend, 4))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return options_from(parser.parse_args(arguments), Path())


def test_both_ways_are_the_default_on_gpus_and_one_on_the_host(monkeypatch):
    assert options_on("cuda", monkeypatch).timings == DEFAULT_TIMINGS
    assert options_on("cuda", monkeypatch, "--timing", KERNEL_BETWEEN).timings == (KERNEL_BETWEEN,)
    assert options_on("cuda", monkeypatch, "--timing", *reversed(TIMINGS)).timings == TIMINGS
    assert options_on("cuda", monkeypatch, "--timing", NORM_BETWEEN).timings == (NORM_BETWEEN,)
    assert options_on("host", monkeypatch).timings == (BACK_TO_BACK,)


def test_a_step_is_timed_one_way(monkeypatch):
    chosen = options_on("cuda", monkeypatch, "--timing", KERNEL_BETWEEN)
    assert chosen.timings_of("all_reduce") == (KERNEL_BETWEEN,)
    assert chosen.timings_of("decode_step") == (BACK_TO_BACK,)


def both_ways() -> Record:
    """All-reduces of which those with a kernel between take two microseconds more."""
    more = {BACK_TO_BACK: 0.0, KERNEL_BETWEEN: 2.0, NORM_BETWEEN: 3.0, PRODUCT_BETWEEN: 4.0}
    rows = tuple(
        Row.of(all_reduce_case(size, torch.bfloat16), impl, 2, Latency(*[us + more[timing]] * 3), timing)
        for size in (512, 8192)
        for timing in TIMINGS
        for impl, us in {"lamport_rs": 2.0, "nccl": 18.0}.items()
    )  # fmt: skip
    return Record(1, "2026-01-02T03:04:05+00:00", None, "NVIDIA H200", 2, None, "2", "2", "cpu", "3", "none", rows)


def test_each_way_has_rows_and_a_table_of_its_own(tmp_path):
    record = both_ways()
    path = write(record, tmp_path)
    expected = 2 * [timing for timing in TIMINGS for _ in range(2)]
    assert [row["timing"] for row in json.loads(path.read_text())["rows"]] == expected
    assert read(path) == record
    first, second, third, fourth = tables(record.rows, "GPUs", 200).split("\n\nall_reduce")
    assert first.startswith("all_reduce, bfloat16, 2 GPUs, back to back: median latency")
    assert second.startswith(", bfloat16, 2 GPUs, another kernel between, its own time taken off: median latency")
    assert third.startswith(", bfloat16, 2 GPUs, a small norm between, its own time taken off: median latency")
    assert fourth.startswith(", bfloat16, 2 GPUs, a product between that empties the caches, its own time taken off: ")
    assert ("9.00" in first, "5.00" in second, "4.20" in third, "3.67" in fourth) == (True, True, True, True)
    assert "20.00" not in first


def test_a_record_that_does_not_say_it_is_of_operations_back_to_back(tmp_path):
    path = write(both_ways(), tmp_path)
    run = json.loads(path.read_text())
    run["rows"] = [{key: value for key, value in row.items() if key != "timing"} for row in run["rows"][:2]]
    path.write_text(json.dumps(run))
    assert {row.timing for row in read(path).rows} == {BACK_TO_BACK}


@pytest.mark.long
def test_each_way_has_panels_of_its_own(tmp_path):
    pytest.importorskip("matplotlib")
    text = draw(both_ways(), tmp_path)[1].read_text()
    for title in ("2 GPUs, bfloat16, back to back", "2 GPUs, bfloat16, another kernel between"):
        assert title in text


def test_taking_a_time_off_keeps_what_else_is_known():
    marked = Latency(5.0, 4.0, 9.0, graph_operations=25, host_included=True)
    assert marked.less(1.5) == replace(marked, median_us=3.5, min_us=2.5, max_us=7.5)
