"""Tensor parallelism of torch, whose sums lamport-rs does: the program names the backend, and imports nothing of it.

torchrun --standalone --nproc-per-node 2 examples/process_group.py
"""

import logging
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

logging.basicConfig()
logging.getLogger("lamport_rs").setLevel("INFO")  # Says when the workspace is made.

device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
dist.init_process_group("lamport")
rank, world_size = dist.get_rank(), dist.get_world_size()

# Any sum of the group.
tensor = torch.full((1024,), rank + 1.0, device=device)
dist.all_reduce(tensor)
print(f"rank {rank}: all_reduce {tensor[0]:.1f}\n", end="")

# And those that torch makes of a plan: each rank has a part of the hidden columns.
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)).to(device)
rows = torch.randn(8, 256, device=device)
with torch.no_grad():
    expected = model(rows)
    mesh = init_device_mesh(device.type, (world_size,))
    sharded = parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    torch.testing.assert_close(sharded(rows), expected, rtol=1e-4, atol=1e-4)
print(f"rank {rank}: parallelize_module agrees with the whole model\n", end="")

dist.destroy_process_group()
