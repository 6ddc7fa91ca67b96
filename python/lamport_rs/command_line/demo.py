"""The collectives between processes: every result checked, and a latency table against the group's own all-reduce."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

import lamport_rs
from lamport_rs import LamportError
from lamport_rs._core import MAX_WORLD_SIZE
from lamport_rs.backends import Backend
from lamport_rs.command_line.bench.cases import all_reduce_case, dtype_name, minimax_case, rms_norm_case
from lamport_rs.command_line.bench.implementations.base import Call
from lamport_rs.command_line.bench.implementations.by_torch import EagerNccl, Gloo
from lamport_rs.command_line.bench.implementations.own import Lamport
from lamport_rs.command_line.bench.member import Member, join
from lamport_rs.command_line.bench.problems import Problem, pose
from lamport_rs.command_line.cores import cores_here
from lamport_rs.command_line.launch import choose_backend, ended_without_reader, launch
from lamport_rs.command_line.replay import Replay, measure_replays
from lamport_rs.command_line.table import format_latency, format_table, output_width, wrap
from lamport_rs.command_line.timing import Latency, measure

_SIZES = (512, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ROWS = 8
_TOKENS = (1, 7, 32, 128, 1000)


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
        norms = [pose(minimax_case(tokens), member) for tokens in _TOKENS]
        for tokens, problem in zip(_TOKENS, norms, strict=True):
            _check(own, problem)
            _say(f"minimax_allreduce_rms_qk, bfloat16, {tokens} tokens")
        if device.type == "cuda":
            rows = [_compare_minimax(own, problem) for problem in norms]
            _print_table("minimax_allreduce_rms_qk of bfloat16, in a CUDA graph", "tokens", "torch + nccl", rows)
        else:
            problem = pose(rms_norm_case(_ROWS), member)
            _check(own, problem)
            _say(f"all_reduce_rms_norm, bfloat16, {_ROWS} x {problem.case.hidden}")
            rows = [_compare_all_reduce(own, size) for size in _SIZES]
            _print_table("all_reduce of float32", "bytes", dist.get_backend(), rows)


def _check(own: Lamport, problem: Problem) -> Call:
    call = own.prepare(problem)
    problem.check(call.run(), own.rounds_once)
    return call


def _say(what: str) -> None:
    if dist.get_rank() == 0:
        _print("  " + wrap(f"{what}: as the float32 reference, on every rank", output_width() - 2, "  "))


def _print(text: str) -> None:
    with ended_without_reader():
        print(text, flush=True)


def _compare_minimax(own: Lamport, problem: Problem) -> tuple[int, Latency, Latency]:
    member = own.member
    call, eager = own.prepare(problem).run, EagerNccl(member, []).prepare(problem).run
    graphs = [Replay(each, member.device) for each in (call, eager)]
    for graph in graphs:
        graph.settle(call)
    latencies = measure_replays(graphs, call)
    return problem.case.tokens or 0, latencies[0], latencies[1]


def _compare_all_reduce(own: Lamport, size: int) -> tuple[int, Latency, Latency]:
    member: Member = own.member
    for dtype in _DTYPES:
        _check(own, pose(all_reduce_case(size, dtype), member))
    _say(f"all_reduce, {size} bytes of {', '.join(map(dtype_name, _DTYPES))}")
    problem = pose(all_reduce_case(size, torch.float32), member)
    repetitions = 200 if size <= 256 << 10 else 50
    latencies = [
        measure(implementation.prepare(problem).run, repetitions, member.device)
        for implementation in (own, Gloo(member, []))
    ]
    return size, latencies[0], latencies[1]


def _print_table(title: str, unit: str, group: str, rows: list[tuple[int, Latency, Latency]]) -> None:
    if dist.get_rank() != 0:
        return
    body = [
        [str(size), _format(own), _format(other), f"{other.median_us / own.median_us:.2f}"] for size, own, other in rows
    ]
    width = output_width()
    title = wrap(f"{title}: median latency in microseconds (least-most)", width)
    _print(f"\n{title}\n\n{format_table([unit, 'lamport_rs', group, 'ratio'], body, width)}")


def _format(latency: Latency) -> str:
    return format_latency(latency.median_us, latency.min_us, latency.max_us)
