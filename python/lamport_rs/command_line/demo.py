"""Every collective between processes, its results checked, and latencies beside the group's own all-reduce."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

import lamport_rs
from lamport_rs import LamportError
from lamport_rs._core import MAX_WORLD_SIZE
from lamport_rs.backends import Backend
from lamport_rs.command_line.bench.arguments import COLLECTIVES
from lamport_rs.command_line.bench.cases import Case, all_reduce_case, cases_of, dtype_name, rows_case
from lamport_rs.command_line.bench.implementations.base import Implementation
from lamport_rs.command_line.bench.implementations.by_torch import EagerNccl, Gloo, Nccl
from lamport_rs.command_line.bench.implementations.own import Lamport
from lamport_rs.command_line.bench.member import join
from lamport_rs.command_line.bench.problems import pose
from lamport_rs.command_line.cores import cores_here
from lamport_rs.command_line.launch import choose_backend, ended_without_reader, launch
from lamport_rs.command_line.replay import Replay, measure_replays
from lamport_rs.command_line.table import format_latency, format_table, output_width, wrap
from lamport_rs.command_line.timing import Latency, measure

_SIZES = (512, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ROWS = (1, 7, 128)
"""Of every operation on rows."""
_TOKENS = (1, 7, 32, 128, 1000)
"""Of the MiniMax norms that are timed on GPUs."""


def run(ranks: int | None, backend: Backend) -> int:
    """Run the demonstration with 1 to 16 `ranks`, None for the default; return 0 if all results were right."""
    name, gpus = choose_backend(backend)
    world_size = (min(gpus, MAX_WORLD_SIZE) if name == "cuda" else 2) if ranks is None else ranks
    if name == "cuda" and not 2 <= world_size <= gpus:
        raise LamportError(f"the demo takes one GPU per rank, 2 or more, and there are {gpus}; pass --backend host")
    where = f"{world_size} GPUs" if name == "cuda" else f"{world_size} processes over shared memory"
    print(wrap(f"lamport_rs {lamport_rs.__version__}: {where}", output_width()), flush=True)
    if (shortage := cores_here().shortage(world_size)) is not None:
        print(wrap(f"warning: {shortage}", output_width()), file=sys.stderr)
    launch(_run_rank, world_size, name)
    return 0


def _run_rank(rank: int, world_size: int, device: torch.device) -> None:
    with join(rank, world_size, device, max(_SIZES), max(_TOKENS)) as member:
        own = Lamport(member, [])
        for op in COLLECTIVES:
            cases = _cases_of(op)
            for case in cases:
                problem = pose(case, member)
                problem.check(own.prepare(problem).run(), own.rounds_once)
            _say(_describe(cases))
        if device.type == "cuda":
            sums = [all_reduce_case(size, torch.bfloat16) for size in _SIZES]
            _compare_graphs(own, Nccl(member, []), sums, "bytes", "nccl")
            norms = [rows_case("minimax_allreduce_rms_qk", tokens) for tokens in _TOKENS]
            _compare_graphs(own, EagerNccl(member, []), norms, "tokens", "torch + nccl")
        else:
            _compare_calls(own, Gloo(member, []))


def _cases_of(op: str) -> list[Case]:
    if op == "all_reduce":
        return [all_reduce_case(size, dtype) for size in _SIZES for dtype in _DTYPES]
    found = cases_of(op, "host", tokens=_ROWS)
    return [case for case in found if case.hidden == found[0].hidden]


def _describe(cases: list[Case]) -> str:
    dtypes = ", ".join(dict.fromkeys(dtype_name(case.dtype) for case in cases))
    sizes = ", ".join(dict.fromkeys(case.size for case in cases))
    return f"{cases[0].op}, {dtypes}, {sizes} {'bytes' if cases[0].hidden is None else f'x {cases[0].hidden}'}"


def _say(what: str) -> None:
    if dist.get_rank() == 0:
        _print("  " + wrap(f"{what}: as the float32 reference, on every rank", output_width() - 2, "  "))


def _print(text: str) -> None:
    with ended_without_reader():
        print(text, flush=True)


def _compare_graphs(own: Lamport, other: Implementation, cases: list[Case], unit: str, group: str) -> None:
    rows = []
    for case in cases:
        problem = pose(case, own.member)
        call = own.prepare(problem).run
        graphs = [Replay(each, own.member.device) for each in (call, other.prepare(problem).run)]
        for graph in graphs:
            graph.settle(call)
        latencies = measure_replays(graphs, call)
        rows.append((case, latencies[0], latencies[1]))
    _print_table(f"{cases[0].op} of {dtype_name(cases[0].dtype)}, in a CUDA graph", unit, group, rows)


def _compare_calls(own: Lamport, other: Implementation) -> None:
    rows = []
    for size in _SIZES:
        problem = pose(all_reduce_case(size, torch.float32), own.member)
        repetitions = 200 if size <= 256 << 10 else 50
        latencies = [measure(each.prepare(problem).run, repetitions, own.member.device) for each in (own, other)]
        rows.append((problem.case, latencies[0], latencies[1]))
    _print_table("all_reduce of float32", "bytes", dist.get_backend(), rows)


def _print_table(title: str, unit: str, group: str, rows: list[tuple[Case, Latency, Latency]]) -> None:
    if dist.get_rank() != 0:
        return
    body = [
        [str(case.bytes or case.tokens), _format(own), _format(other), f"{other.median_us / own.median_us:.2f}"]
        for case, own, other in rows
    ]
    width = output_width()
    title = wrap(f"{title}: median latency in microseconds (least-most)", width)
    _print(f"\n{title}\n\n{format_table([unit, 'lamport_rs', group, 'ratio'], body, width)}")


def _format(latency: Latency) -> str:
    return format_latency(latency.median_us, latency.min_us, latency.max_us)
