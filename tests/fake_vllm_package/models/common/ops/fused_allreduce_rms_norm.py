"""An eager helper for plain weights, with names of the other one."""

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.model_executor.layers.fused_allreduce_gemma_rms_norm import (
    _AR_RESIDUAL_RMS_NORM,
    _can_use_flashinfer,
    flashinfer_trtllm_fused_allreduce_norm,
)


def fused_allreduce_rms_norm(hidden_states, residual, norm):
    group = get_tp_group()
    if flashinfer_trtllm_fused_allreduce_norm is not None:
        ok, tokens = _can_use_flashinfer(hidden_states, group.world_size)
        if ok:
            norm_out = torch.empty_like(hidden_states)
            flashinfer_trtllm_fused_allreduce_norm(
                allreduce_in=hidden_states,
                residual=residual,
                rms_gamma=norm.weight,
                rms_eps=norm.variance_epsilon,
                world_size=group.world_size,
                weight_bias=0.0,
                launch_with_pdl=True,
                fp32_acc=True,
                max_token_num=tokens,
                pattern_code=_AR_RESIDUAL_RMS_NORM,
                norm_out=norm_out,
            )
            return norm_out, hidden_states
    return norm(group.device_communicator.all_reduce(hidden_states), residual)
