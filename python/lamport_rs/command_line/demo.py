"""The collectives between processes: every result checked, and a latency table against the group's own all-reduce."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.distributed as dist

import lamport_rs
from lamport_rs.backends import Backend, resolve_backend
from lamport_rs.command_line.launch import launch
from lamport_rs.command_line.timing import Latency, measure, measure_graph

_SIZES = (512, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)
_HIDDEN = 4096
_ROWS = 8
_TOKENS = (1, 7, 32, 128, 1000)
_Q_SIZE, _KV_SIZE = 6144, 1024
_EPSILON = 1e-6

_Operands: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Packed qkv, Q's weight, K's weight."""


def run(ranks: int | None, backend: Backend) -> int:
    """Run the demonstration; return 0 if all results were right."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if backend == "auto":
        backend = "cuda" if gpus >= 2 else "host"
    name, _ = resolve_backend(backend, None if backend == "cuda" else "cpu")
    world_size = ranks or (gpus if name == "cuda" else 2)
    where = f"{world_size} GPUs" if name == "cuda" else f"{world_size} processes over shared memory"
    print(f"lamport_rs {lamport_rs.__version__}: {where}", flush=True)
    launch(_run_rank, world_size, name)
    return 0


def _run_rank(rank: int, world_size: int, device: torch.device) -> None:
    comm_size = lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(max(_SIZES), world_size)
    with lamport_rs.LamportWorkspace(rank, world_size, comm_size, device=device) as workspace:
        for tokens in _TOKENS:
            _check_minimax(workspace, device, tokens)
        if device.type == "cuda":
            rows = [_compare_minimax(workspace, device, tokens) for tokens in _TOKENS]
            _print_table("minimax_allreduce_rms_qk of bfloat16, in a CUDA graph", "tokens", "torch + nccl", rows)
        else:
            _check_rms_norm(workspace, device)
            rows = [_compare_all_reduce(workspace, device, size) for size in _SIZES]
            _print_table("all_reduce of float32", "bytes", dist.get_backend(), rows)


def _gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's tensor, in float32, in rank order, through the process group."""
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return [each.float() for each in gathered]


def _rank_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The float32 reference: every rank's tensor, summed in rank order."""
    total, *others = _gather(tensor)
    for other in others:
        total = total + other
    return total


def _normalise(rows: torch.Tensor, mean_square: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rows.float() * torch.rsqrt(mean_square + _EPSILON) * weight


def _say(what: str) -> None:
    if dist.get_rank() == 0:
        print(f"  {what}: as the float32 reference, on every rank", flush=True)


def _minimax_operands(workspace: lamport_rs.LamportWorkspace, device: torch.device, tokens: int) -> _Operands:
    q_size, kv_size = (size // workspace.world_size // 8 * 8 for size in (_Q_SIZE, _KV_SIZE))
    qkv = torch.randn(tokens, q_size + 2 * kv_size, device=device).bfloat16()
    q_weight, k_weight = (torch.randn(size, device=device).bfloat16() for size in (q_size, kv_size))
    return qkv, q_weight, k_weight


def _minimax(workspace: lamport_rs.LamportWorkspace, operands: _Operands) -> tuple[torch.Tensor, torch.Tensor]:
    qkv, q_weight, k_weight = operands
    sizes = len(q_weight), len(k_weight)
    rank, world_size = workspace.rank, workspace.world_size
    return lamport_rs.minimax_allreduce_rms_qk(
        qkv, q_weight, k_weight, workspace, *sizes, rank=rank, nranks=world_size, eps=_EPSILON
    )


def _minimax_by_torch(operands: _Operands) -> list[torch.Tensor]:
    """The same through the process group: all-reduce the sums of squares, then normalise in float32."""
    qkv, *weights = operands
    parts = [part.float() for part in qkv.split([*map(len, weights), len(weights[1])], dim=-1)[:2]]
    squares = torch.cat([part.square().sum(-1, keepdim=True) for part in parts], dim=-1)
    dist.all_reduce(squares)
    mean_squares = [
        squares[:, index : index + 1] / (len(weight) * dist.get_world_size()) for index, weight in enumerate(weights)
    ]
    return [
        _normalise(part, mean_square, weight).to(qkv.dtype)
        for part, mean_square, weight in zip(parts, mean_squares, weights, strict=True)
    ]


def _check_minimax(workspace: lamport_rs.LamportWorkspace, device: torch.device, tokens: int) -> None:
    operands = _minimax_operands(workspace, device, tokens)
    for output, expected in zip(_minimax(workspace, operands), _minimax_by_torch(operands), strict=True):
        torch.testing.assert_close(output, expected)
    _say(f"minimax_allreduce_rms_qk, bfloat16, {tokens} tokens")


def _compare_minimax(
    workspace: lamport_rs.LamportWorkspace, device: torch.device, tokens: int
) -> tuple[int, Latency, Latency]:
    operands = _minimax_operands(workspace, device, tokens)

    def own() -> tuple[torch.Tensor, torch.Tensor]:
        return _minimax(workspace, operands)

    def by_torch() -> list[torch.Tensor]:
        return _minimax_by_torch(operands)

    return tokens, measure_graph(own, own, device), measure_graph(by_torch, own, device)


def _check_rms_norm(workspace: lamport_rs.LamportWorkspace, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(_ROWS, _HIDDEN, generator=generator).to(device).bfloat16()
    weight = torch.randn(_HIDDEN, generator=generator).to(device).bfloat16()
    partial = torch.randn(_ROWS, _HIDDEN, device=device).bfloat16()
    output, residual_output = lamport_rs.all_reduce_rms_norm(partial, residual, weight, workspace, _EPSILON)
    total = _rank_sum(partial) + residual.float()
    torch.testing.assert_close(residual_output, total.bfloat16(), rtol=0, atol=0)
    expected = _normalise(total, total.square().mean(-1, keepdim=True), weight)
    torch.testing.assert_close(output, expected.bfloat16())
    _say(f"all_reduce_rms_norm, bfloat16, {_ROWS} x {_HIDDEN}")


def _compare_all_reduce(
    workspace: lamport_rs.LamportWorkspace, device: torch.device, size: int
) -> tuple[int, Latency, Latency]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.randn(size // dtype.itemsize, device=device).to(dtype)
        total = lamport_rs.all_reduce(tensor, workspace)
        torch.testing.assert_close(total, _rank_sum(tensor).to(dtype), rtol=0, atol=0)
    _say(f"all_reduce, {size} bytes of float32, float16, bfloat16")
    tensor = torch.randn(size // 4, device=device)
    out, other = torch.empty_like(tensor), tensor.clone()
    repetitions = 200 if size <= 256 << 10 else 50
    own = measure(lambda: lamport_rs.all_reduce(tensor, workspace, out=out), repetitions, device)
    group = measure(lambda: dist.all_reduce(other), repetitions, device)
    return size, own, group


def _print_table(title: str, unit: str, group: str, rows: list[tuple[int, Latency, Latency]]) -> None:
    if dist.get_rank() != 0:
        return
    print(f"\n{title}, median latency in microseconds\n\n{unit:>9} {'lamport_rs':>11} {group:>13} {'ratio':>7}")
    for size, own, other in rows:
        factor = other.median_us / own.median_us
        print(f"{size:9} {own.median_us:11.1f} {other.median_us:13.1f} {factor:7.1f}")
