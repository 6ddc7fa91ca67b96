"""A tensor-parallel MLP under torch.compile: sum, residual and norm are operators of the one graph.

On GPUs torch's default backend compiles it, inductor. On CPUs it is "aot_eager", which traces the same graph and
generates no code: that takes a second, and no C++ compiler.

torchrun --standalone --nproc-per-node 2 examples/compiled.py
"""

import os

import lamport_rs
import torch
import torch.distributed as dist

HIDDEN, INTERMEDIATE, LAYERS, TOKENS = 512, 2048, 3, 8

if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group()

with torch.no_grad(), lamport_rs.LamportWorkspace.for_group() as workspace:
    rank, device, columns = workspace.rank, workspace.device, INTERMEDIATE // workspace.world_size
    torch.manual_seed(0)
    residual, weight = torch.randn(TOKENS, HIDDEN).to(device), torch.rand(HIDDEN).to(device)
    torch.manual_seed(1 + rank)  # Each rank makes its own part of the matrices.
    up = torch.randn(HIDDEN, columns).to(device) / HIDDEN**0.5
    down = torch.randn(columns, HIDDEN).to(device) / INTERMEDIATE**0.5

    def mlp(hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised rows and the residual for the next layer."""
        partial = torch.relu(hidden @ up) @ down
        return lamport_rs.all_reduce_rms_norm(partial, residual, weight, workspace)

    compiled = torch.compile(mlp, fullgraph=True, backend="inductor" if device.type == "cuda" else "aot_eager")
    hidden = residual
    for _ in range(LAYERS):
        expected = mlp(hidden, residual)
        hidden, residual = compiled(hidden, residual)
        torch.testing.assert_close((hidden, residual), expected, rtol=1e-3, atol=1e-3)
    print(f"rank {rank}: {LAYERS} compiled layers agree with eager ones\n", end="")

dist.destroy_process_group()
