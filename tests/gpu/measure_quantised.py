"""What a quantised output costs beside the norm alone, and beside the norm followed by a kernel that quantises:

    python tests/gpu/measure_quantised.py --tokens 1 8 32 128 --hidden 4096
    python tests/gpu/measure_quantised.py --sums

The latter: sums, and not norms.

Microseconds per operation in CUDA graphs, back to back, all in turns: the slowest rank's median, as the bench has it.
Behind the norm kernels stand for those that quantise: torch's cast to FP8 without a scale, the least that any such
kernel does, and for each format what torch.compile makes of its definition, "norm, then ...". `--formats` has fewer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import lamport_rs
import torch
from lamport_rs.command_line.bench.member import join
from lamport_rs.command_line.launch import choose_backend, launch
from lamport_rs.command_line.replay import Replay, measure_replays
from lamport_rs.operations import QuantFormat
from lamport_rs.operations.quant_formats import empty_quantised, put_quantised

FORMATS: tuple[QuantFormat, ...] = get_args(QuantFormat)
GIVEN = {"fp8_static": 0.01, "nvfp4": 150.0, "nvfp4_swizzled": 150.0}
"""Scales for those that have one given."""
EPS = 1e-6


# One for each format and number of rows.
torch._dynamo.config.cache_size_limit = 256
quantise = torch.compile(put_quantised, dynamic=False, fullgraph=True)


def places_for(rows: torch.Tensor, name: str) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """A scale, if one is given, the quantised rows and the scales."""
    scale = torch.tensor([GIVEN[name]], device=rows.device) if name in GIVEN else None
    return scale, *empty_quantised(rows, name, scale)


def quantised_after(total: Callable[[], torch.Tensor], rows: torch.Tensor, name: str) -> Callable[[], object]:
    """The sum or the norm, then a kernel that quantises it, or as many as the compiler takes."""
    scale, out, scales = places_for(rows, name)
    return lambda: quantise(total(), name, out, scale, scales)


def calls_of(
    workspace: lamport_rs.LamportWorkspace, tokens: int, hidden: int, formats: Sequence[QuantFormat]
) -> dict[str, Callable[[], object]]:
    device = workspace.device
    rows, residual = (torch.randn(tokens, hidden, device=device).bfloat16() for _ in range(2))
    operands = rows, residual, torch.randn(hidden, device=device).bfloat16(), workspace
    out, summed, codes = rows.clone(), rows.clone(), rows.to(torch.float8_e4m3fn)

    def norm() -> torch.Tensor:
        return lamport_rs.all_reduce_rms_norm(*operands, EPS, out=out, residual_out=summed)[0]

    calls = {"norm": norm, "norm, cast": lambda: codes.copy_(norm())}
    for name in formats:
        scale, made, scales = places_for(rows, name)
        places = {"out": made, "residual_out": summed, **({"scale_out": scales} if scales.numel() else {})}
        call = partial(lamport_rs.all_reduce_rms_norm_quant, *operands, name, scale, EPS, **places)
        calls |= {name: call, f"{name}, norm": partial(call, norm_out=out)}
        calls[f"norm, then {name}"] = quantised_after(norm, rows, name)
    return calls


def sums_of(
    workspace: lamport_rs.LamportWorkspace, tokens: int, hidden: int, formats: Sequence[QuantFormat]
) -> dict[str, Callable[[], object]]:
    device = workspace.device
    rows = torch.randn(tokens, hidden, device=device).bfloat16()
    out, codes = rows.clone(), rows.to(torch.float8_e4m3fn)
    total = partial(lamport_rs.all_reduce, rows, workspace, out)
    calls = {"sum": total, "sum, cast": lambda: codes.copy_(total())}
    for name in formats:
        scale, made, scales = places_for(rows, name)
        places = {"out": made, **({"scale_out": scales} if scales.numel() else {})}
        call = partial(lamport_rs.all_reduce_quant, rows, workspace, name, scale, **places)
        calls |= {name: call, f"{name}, sum": partial(call, sum_out=out)}
        calls[f"sum, then {name}"] = quantised_after(total, rows, name)
    return calls


def measure(
    rank: int,
    world_size: int,
    device: torch.device,
    tokens: list[int],
    hidden: int,
    replays: int,
    sums: bool,
    formats: list[QuantFormat],
) -> None:
    with join(rank, world_size, device, 2 * max(tokens) * hidden, 1) as member:
        word = torch.zeros(16, device=device)
        align = partial(lamport_rs.all_reduce, word, member.workspace, out=word)
        for count in tokens:
            calls = (sums_of if sums else calls_of)(member.workspace, count, hidden, formats)
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
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    given = parser.parse_args()
    backend, _ = choose_backend("cuda")
    arguments = given.tokens, given.hidden, given.replays, given.sums, given.formats
    launch(measure, given.ranks, backend, *arguments, time_limit=600)


if __name__ == "__main__":
    main()
