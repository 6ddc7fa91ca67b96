"""Where earlier releases have vLLM's own workspaces."""

from vllm.model_executor.layers.minimax_rms_norm.lamport_workspace import get_allreduce_workspace as own


def get_allreduce_workspace(rank, world_size, comm_size=None, max_tokens=16384, process_group=None):
    return own(rank, world_size, comm_size, max_tokens, process_group)
