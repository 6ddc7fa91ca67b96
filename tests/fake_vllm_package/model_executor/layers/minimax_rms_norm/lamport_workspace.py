"""vLLM's own workspaces: here a table that no operator of the package takes."""

import torch


def get_allreduce_workspace(rank, world_size, comm_size=None, max_tokens=16384, process_group=None):
    return torch.zeros(3 * world_size + 2, dtype=torch.int64)
