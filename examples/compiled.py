"""A tensor-parallel MLP under torch.compile: sum, residual and norm are operators of the one graph.

GPUs get torch's default backend, inductor. CPUs get "aot_eager", which traces the same graph and generates no code: that
takes no C++ compiler and no time.

torchrun --nproc-per-node 2 examples/compiled.py
"""

import os

import lamport_rs
import torch
import torch.distributed as dist

HIDDEN, INTERMEDIATE, TOKENS = 512, 2048, 8

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
    for layer in range(3):
        expected = mlp(hidden, residual)
        hidden, residual = compiled(hidden, residual)
        torch.testing.assert_close((hidden, residual), expected, rtol=1e-3, atol=1e-3)
    print(f"rank {rank}: {layer + 1} compiled layers agree with eager ones")

dist.destroy_process_group()
