"""What a quantised output costs beside the norm alone, and beside the norm followed by a kernel that quantises:

    python tests/gpu/measure_quantised.py --tokens 1 8 32 128 --hidden 4096
    python tests/gpu/measure_quantised.py --sums

The latter: sums, and not norms.

Microseconds per operation in CUDA graphs, back to back, all in turns: the slowest rank's median, as the bench has it.
Behind the norm two kernels stand for those that quantise: torch's cast to FP8 without a scale, the least that any such
kernel does, and for "fp8_token" what torch.compile makes of the definition.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import get_args

import lamport_rs
import torch
from lamport_rs.command_line.bench.member import join
from lamport_rs.command_line.launch import choose_backend, launch
from lamport_rs.command_line.replay import Replay, measure_replays
from lamport_rs.operations import QuantFormat

FORMATS = get_args(QuantFormat)
SUM_FORMATS = ("fp8_static", "fp8_token", "fp8_group", "fp8_group_column_major")
GIVEN = {"fp8_static": 0.01, "nvfp4": 150.0, "nvfp4_swizzled": 150.0}
"""Scales for those that have one given."""
EPS = 1e-6


@torch.compile(dynamic=False)
def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = rows.float()
    scales = (values.abs().amax(-1, keepdim=True) / 448).clamp(min=1 / (448 * 512))
    return (values / scales).clamp(-448, 448).to(torch.float8_e4m3fn), scales


def calls_of(workspace: lamport_rs.LamportWorkspace, tokens: int, hidden: int) -> dict[str, Callable[[], object]]:
    device = workspace.device
    rows, residual = (torch.randn(tokens, hidden, device=device).bfloat16() for _ in range(2))
    operands = rows, residual, torch.randn(hidden, device=device).bfloat16(), workspace
    out, summed, codes = rows.clone(), rows.clone(), rows.to(torch.float8_e4m3fn)

    def norm() -> torch.Tensor:
        return lamport_rs.all_reduce_rms_norm(*operands, EPS, out=out, residual_out=summed)[0]

    calls = {"norm": norm, "norm, cast": lambda: codes.copy_(norm()), "norm, token": lambda: quantise(norm())}
    for name in FORMATS:
        scale = torch.tensor([GIVEN[name]], device=device) if name in GIVEN else None
        made, scales, *_ = lamport_rs.all_reduce_rms_norm_quant(*operands, name, scale, EPS)
        places = {"out": made, "residual_out": summed, **({} if scales is scale else {"scale_out": scales})}
        call = partial(lamport_rs.all_reduce_rms_norm_quant, *operands, name, scale, EPS, **places)
        calls |= {name: call, f"{name}, norm": partial(call, norm_out=out)}
    return calls


def sums_of(workspace: lamport_rs.LamportWorkspace, tokens: int, hidden: int) -> dict[str, Callable[[], object]]:
    device = workspace.device
    rows = torch.randn(tokens, hidden, device=device).bfloat16()
    out, codes = rows.clone(), rows.to(torch.float8_e4m3fn)
    total = partial(lamport_rs.all_reduce, rows, workspace, out)
    calls = {"sum": total, "sum, cast": lambda: codes.copy_(total()), "sum, token": lambda: quantise(total())}
    for name in SUM_FORMATS:
        scale = torch.tensor([GIVEN[name]], device=device) if name in GIVEN else None
        scales = lamport_rs.all_reduce_quant(rows, workspace, name, scale)[1]
        places = {"out": codes, **({} if scale is not None else {"scale_out": scales})}
        call = partial(lamport_rs.all_reduce_quant, rows, workspace, name, scale, **places)
        calls |= {name: call, f"{name}, sum": partial(call, sum_out=out)}
    return calls


def measure(
    rank: int, world_size: int, device: torch.device, tokens: list[int], hidden: int, replays: int, sums: bool
) -> None:
    with join(rank, world_size, device, 2 * max(tokens) * hidden, 1) as member:
        word = torch.zeros(16, device=device)
        align = partial(lamport_rs.all_reduce, word, member.workspace, out=word)
        for count in tokens:
            calls = (sums_of if sums else calls_of)(member.workspace, count, hidden)
            graphs = [Replay(call, device) for call in calls.values()]
            for graph in graphs:
                graph.settle(align)
            found = measure_replays(graphs, align, replays)
            for name, latency in zip(calls, found, strict=True) if rank == 0 else ():
                more = latency.median_us - found[0].median_us
                print(f"{count:5} tokens  {name:30} {latency.median_us:7.3f} us  {more:+7.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--replays", type=int, default=60)
    parser.add_argument("--sums", action="store_true", help="sums that are quantised, and not norms")
    given = parser.parse_args()
    backend, _ = choose_backend("cuda")
    launch(measure, given.ranks, backend, given.tokens, given.hidden, given.replays, given.sums, time_limit=600)


if __name__ == "__main__":
    main()
