"""How CUDA graphs are timed, without a GPU: what the device would say is made up."""

from __future__ import annotations

import torch
from lamport_rs.command_line.bench.cases import all_reduce_case
from lamport_rs.command_line.bench.record import Row
from lamport_rs.command_line.bench.report import tables
from lamport_rs.command_line.replay import Replay, measure_replays
from lamport_rs.command_line.timing import Latency
from ranks import Rank


class MadeUp(Replay):
    """A graph of which the host enqueues up to `ahead` operations ahead, and each in `host_us`."""

    def __init__(self, ahead: int, host_us: float, log: list[str] | None = None, name: str = "") -> None:
        super().__init__(lambda: None, torch.device("cpu"))
        self.ahead, self.host_us, self.log, self.name = ahead, host_us, log, name
        self.jitter: list[bool] = []

    def _capture(self, operations: int) -> None:
        self.operations = operations

    def _time(self, align) -> tuple[bool, float]:
        if self.log is not None:
            self.log.append(self.name)
        if self.jitter and self.jitter.pop():
            return True, 100.0
        return self.operations > self.ahead or self.operations * self.host_us > self._delay, 1.0


def settled(graph: MadeUp) -> tuple[int, int, bool]:
    graph.settle(lambda: None)
    return graph._delay, graph.operations, graph.host_keeps_ahead


def test_the_delay_grows_until_the_host_keeps_ahead_and_no_further():
    assert settled(MadeUp(100, 0.5)) == (60, 100, True)
    assert settled(MadeUp(100, 3.0)) == (480, 100, True)
    assert settled(MadeUp(100, 39.0)) == (4000, 100, True)


def test_the_graph_is_made_shorter_where_no_delay_is_long_enough():
    assert settled(MadeUp(30, 0.5)) == (4000, 25, True)
    assert settled(MadeUp(100, 300.0)) == (4000, 12, True)


def test_a_graph_that_cannot_be_enqueued_ahead_is_measured_with_the_hosts_time():
    graph = MadeUp(2, 0.5)
    assert settled(graph) == (4000, 6, False)
    assert graph.time(lambda: None) == 1.0


def test_one_late_replay_is_repeated_and_one_on_time_is_no_proof():
    graph = MadeUp(100, 0.5)
    graph.jitter = [False, True, False]
    assert settled(graph) == (120, 100, True)
    graph.jitter = [True] * 19
    assert graph.time(lambda: None) == 1.0
    assert graph.host_keeps_ahead
    graph.jitter = [True] * 20
    assert graph.time(lambda: None) == 100.0
    assert not graph.host_keeps_ahead, "the figure has the host's time in it, and does not say so"


def test_a_host_that_became_slower_gets_a_longer_delay():
    graph = MadeUp(100, 0.5)
    settled(graph)
    graph.host_us = 39.0
    graph.time(lambda: None)
    assert (graph._delay, graph.host_keeps_ahead) == (4000, True)


def measure_in_turns(_: Rank) -> tuple[list[str], list[Latency]]:
    log: list[str] = []
    graphs = [MadeUp(100, 0.5, log, name) for name in "abc"]
    graphs[1].operations, graphs[2].host_keeps_ahead = 25, False
    return log, measure_replays(graphs, lambda: None, replays=1)


def test_graphs_are_timed_in_turns_that_begin_with_another_each(ranks_of):
    for log, found in ranks_of(2).run(measure_in_turns):
        assert "".join(log) == "abcbcacab" * 2
        assert [(each.median_us, each.graph_operations, each.host_included) for each in found] == [
            (1.0, None, None),
            (1.0, 25, None),
            (1.0, None, True),
        ]


def test_what_was_not_measured_alike_is_marked_and_not_compared_with():
    rows = [
        Row.of(all_reduce_case(512, torch.bfloat16), name, 2, Latency(median, median, median, operations, included))
        for name, median, operations, included in [
            ("lamport_rs", 2.0, None, None),
            ("shorter", 5.0, 25, None),
            ("slowed", 3.0, 6, True),
        ]
    ]
    text = tables(rows, "GPUs", 200)
    assert "5.00*" in text
    assert "3.00**" in text
    assert "2.50" in text, "the ratio is not that to the best of those that were measured alone"
    assert "in a shorter graph" in text
    assert "with the host's time" in text
    assert "*" not in tables(rows[:1], "GPUs", 200)
