"""The eager helper: fused where the operator is there and a workspace can be had, else by parts."""

import torch
from vllm.distributed.parallel_state import get_tp_group

try:
    from vllm.compilation.passes.fusion.allreduce_rms_fusion import flashinfer_trtllm_fused_allreduce_norm
    from vllm.distributed.device_communicators.flashinfer_all_reduce import flashinfer_comm, get_fi_ar_workspace

    PATTERN = flashinfer_comm.AllReduceFusionPattern.kARResidualRMSNorm
except ImportError:
    flashinfer_trtllm_fused_allreduce_norm = get_fi_ar_workspace = PATTERN = None


def fused_allreduce_gemma_rms_norm(hidden_states, residual, norm):
    group, tokens = get_tp_group(), 4096
    options = {"world_size": group.world_size, "rank": group.rank_in_group, "max_token_num": tokens}
    options |= {"hidden_dim": hidden_states.shape[-1], "dtype": hidden_states.dtype, "group": group.group_for_fusion}
    workspace = None if flashinfer_trtllm_fused_allreduce_norm is None else get_fi_ar_workspace(**options)
    if workspace is None:
        return norm(group.device_communicator.all_reduce(hidden_states), residual)
    norm_out = torch.empty_like(hidden_states)
    flashinfer_trtllm_fused_allreduce_norm(
        allreduce_in=hidden_states,
        residual=residual,
        rms_gamma=norm.weight,
        rms_eps=norm.variance_epsilon,
        world_size=group.world_size,
        weight_bias=1.0,
        launch_with_pdl=True,
        fp32_acc=True,
        max_token_num=tokens,
        pattern_code=PATTERN,
        norm_out=norm_out,
    )
    return norm_out, hidden_states
