"""The collectives between processes: every result checked, and a latency table against the group's own all-reduce."""

from __future__ import annotations

import torch
import torch.distributed as dist

import lamport_rs
from lamport_rs.backends import Backend, resolve_backend
from lamport_rs.command_line.launch import launch
from lamport_rs.command_line.timing import Latency, measure

_SIZES = (512, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)
_HIDDEN = 4096
_TOKENS = 8
_Q_SIZE, _KV_SIZE = 6144, 1024


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
        _check_minimax(workspace, device)
        _check_rms_norm(workspace, device)
        rows = [_compare_all_reduce(workspace, device, size) for size in _SIZES]
        if rank == 0:
            _print_table(rows)


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
    return rows.float() * torch.rsqrt(mean_square + 1e-6) * weight


def _say(what: str) -> None:
    if dist.get_rank() == 0:
        print(f"  {what}: as the float32 reference, on every rank", flush=True)


def _check_minimax(workspace: lamport_rs.LamportWorkspace, device: torch.device) -> None:
    rank, world_size = workspace.rank, workspace.world_size
    q_size, kv_size = (size // world_size // 8 * 8 for size in (_Q_SIZE, _KV_SIZE))
    for tokens in (1, 7, 128):
        qkv = torch.randn(tokens, q_size + 2 * kv_size, device=device).bfloat16()
        q_weight, k_weight = (torch.randn(size, device=device).bfloat16() for size in (q_size, kv_size))
        outputs = lamport_rs.minimax_allreduce_rms_qk(
            qkv, q_weight, k_weight, workspace, q_size, kv_size, rank, world_size, 1e-6
        )
        parts = qkv[:, :q_size], qkv[:, q_size : q_size + kv_size]
        for output, part, weight in zip(outputs, parts, (q_weight, k_weight), strict=True):
            squares = _rank_sum(part.float().square().sum(-1, keepdim=True))
            expected = _normalise(part, squares / (world_size * part.shape[-1]), weight)
            torch.testing.assert_close(output, expected.bfloat16())
    _say(f"minimax_allreduce_rms_qk, bfloat16, {q_size} + {kv_size} columns per rank")


def _check_rms_norm(workspace: lamport_rs.LamportWorkspace, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(_TOKENS, _HIDDEN, generator=generator).to(device).bfloat16()
    weight = torch.randn(_HIDDEN, generator=generator).to(device).bfloat16()
    partial = torch.randn(_TOKENS, _HIDDEN, device=device).bfloat16()
    output, residual_output = lamport_rs.all_reduce_rms_norm(partial, residual, weight, workspace, 1e-6)
    total = _rank_sum(partial) + residual.float()
    torch.testing.assert_close(residual_output, total.bfloat16(), rtol=0, atol=0)
    expected = _normalise(total, total.square().mean(-1, keepdim=True), weight)
    torch.testing.assert_close(output, expected.bfloat16())
    _say(f"all_reduce_rms_norm, bfloat16, {_TOKENS} x {_HIDDEN}")


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


def _print_table(rows: list[tuple[int, Latency, Latency]]) -> None:
    group = dist.get_backend()
    print(f"\nall_reduce of float32, median latency in microseconds\n\n{'bytes':>9} {'lamport_rs':>11} {group:>9}")
    for size, own, other in rows:
        factor = other.median_us / own.median_us
        print(f"{size:9} {own.median_us:11.1f} {other.median_us:9.1f}   {factor:.1f} times faster")
