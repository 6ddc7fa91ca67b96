"""The eager helper: fused where the operator is there and a workspace can be had, else by parts."""

import torch
from vllm.distributed.parallel_state import get_tp_group

try:
    from vllm.compilation.passes.fusion.allreduce_rms_fusion import flashinfer_trtllm_fused_allreduce_norm
    from vllm.distributed.device_communicators.flashinfer_all_reduce import flashinfer_comm, get_fi_ar_workspace

    _AR_RESIDUAL_RMS_NORM = flashinfer_comm.AllReduceFusionPattern.kARResidualRMSNorm
except ImportError:
    flashinfer_trtllm_fused_allreduce_norm = get_fi_ar_workspace = _AR_RESIDUAL_RMS_NORM = None


def _can_use_flashinfer(hidden_states, tp_size):
    if None in (flashinfer_trtllm_fused_allreduce_norm, _AR_RESIDUAL_RMS_NORM):
        return False, 0
    group, tokens = get_tp_group(), 4096
    options = {"world_size": tp_size, "rank": group.rank_in_group, "max_token_num": tokens}
    options |= {"hidden_dim": hidden_states.shape[-1], "dtype": hidden_states.dtype, "group": group.group_for_fusion}
    return get_fi_ar_workspace(**options) is not None, tokens


def fused_allreduce_gemma_rms_norm(hidden_states, residual, norm):
    group = get_tp_group()
    ok, tokens = _can_use_flashinfer(hidden_states, group.world_size)
    if not ok:
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
        pattern_code=_AR_RESIDUAL_RMS_NORM,
        norm_out=norm_out,
    )
    return norm_out, hidden_states
