"""Run it on two GPUs, or on the CPU: torchrun --standalone --nproc-per-node 2 examples/quick_start.py."""

import os

import lamport_rs
import torch
import torch.distributed as dist

if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group()

with lamport_rs.LamportWorkspace.for_group() as workspace:
    partial = torch.full((4, 1024), workspace.rank + 1.0, device=workspace.device)
    total = lamport_rs.all_reduce(partial, workspace)
    residual, weight = torch.ones_like(partial), torch.full_like(partial[0], 0.5)
    hidden, residual = lamport_rs.all_reduce_rms_norm(partial, residual, weight, workspace, eps=1e-6)
    said = f"sum {total[0, 0]:.1f}, with residual {residual[0, 0]:.1f}, norm {hidden[0, 0]:.1f}"
    print(f"rank {workspace.rank}: {said}\n", end="")  # Line and newline at once: torchrun does not buffer.

dist.destroy_process_group()
