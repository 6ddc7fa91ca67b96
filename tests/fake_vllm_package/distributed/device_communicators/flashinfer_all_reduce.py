"""Where vLLM makes FlashInfer's workspaces. `fake_vllm.py` adds `FlashInferAllReduce`."""

try:
    import flashinfer.comm as flashinfer_comm

    fi_ar_available = hasattr(flashinfer_comm, "allreduce_fusion")
except ImportError:
    fi_ar_available = False


def get_fi_ar_workspace(world_size, rank, max_token_num, hidden_dim, dtype, group):
    return flashinfer_comm.create_allreduce_fusion_workspace(group=group)


def get_fi_ar_quant_workspace(world_size, rank, max_token_num, hidden_dim, dtype, group):
    return flashinfer_comm.create_allreduce_fusion_workspace(group=group)


def destroy_fi_ar_workspace(): ...
