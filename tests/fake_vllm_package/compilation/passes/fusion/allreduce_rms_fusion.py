"""The fusion pass: with FlashInfer it defines the operator and takes workspaces, without it does nothing."""

from importlib.util import find_spec

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.utils import flashinfer as _utils

flashinfer_comm = None
if find_spec("flashinfer"):
    import flashinfer.comm as flashinfer_comm

if flashinfer_comm is not None:
    from vllm.distributed.device_communicators.flashinfer_all_reduce import (
        get_fi_ar_quant_workspace,
        get_fi_ar_workspace,
    )

    def call_trtllm_fused_allreduce_norm(
        allreduce_in,
        residual,
        rms_gamma,
        rms_eps,
        world_size,
        launch_with_pdl,
        fp32_acc,
        max_token_num,
        pattern_code,
        norm_out=None,
        quant_out=None,
        scale_out=None,
        scale_factor=None,
        weight_bias=0.0,
    ):
        if allreduce_in.dim() != 2:
            rows = (-1, allreduce_in.shape[-1])
            allreduce_in, residual = allreduce_in.view(rows), residual.view(rows)
            norm_out = None if norm_out is None else norm_out.view(rows)
        patterns = flashinfer_comm.AllReduceFusionPattern
        quantised = pattern_code in (patterns.kARResidualRMSNormFP8Quant, patterns.kARResidualRMSNormFP4Quant)
        workspace = (get_fi_ar_quant_workspace if quantised else get_fi_ar_workspace)(
            world_size=world_size,
            rank=get_tp_group().rank_in_group,
            max_token_num=max_token_num,
            hidden_dim=allreduce_in.shape[-1],
            dtype=allreduce_in.dtype,
            group=get_tp_group().group_for_fusion,
        )
        assert workspace is not None
        layout = flashinfer_comm.QuantizationSFLayout.SWIZZLED_128x4
        flashinfer_comm.allreduce_fusion(
            input=allreduce_in,
            workspace=workspace,
            pattern=pattern_code,
            launch_with_pdl=launch_with_pdl,
            output=None,
            residual_out=residual if norm_out is None else allreduce_in,
            norm_out=allreduce_in if norm_out is None else norm_out,
            quant_out=quant_out,
            scale_out=scale_out,
            residual_in=residual,
            rms_gamma=rms_gamma,
            rms_eps=rms_eps,
            scale_factor=scale_factor,
            layout_code=layout if workspace.backend in ("trtllm", "mnnvl") else None,
            use_oneshot=True,
            fp32_acc=fp32_acc,
            weight_bias=weight_bias,
            trigger_completion_at_end=True,
        )

    flashinfer_trtllm_fused_allreduce_norm = call_trtllm_fused_allreduce_norm

# What is asked here is remembered.
knew_of_flashinfer = _utils.has_flashinfer()


class AllReduceFusionPass:
    def __init__(self, config):
        self.disabled, self.supports_quant_fusion = True, False
        if flashinfer_comm is None:
            return
        options = {
            "world_size": get_tp_group().world_size,
            "rank": get_tp_group().rank_in_group,
            "max_token_num": config.max_token_num,
            "hidden_dim": config.hidden_size,
            "dtype": getattr(config, "dtype", torch.bfloat16),
            "group": get_tp_group().group_for_fusion,
        }
        if get_fi_ar_workspace(**options) is None:
            return
        self.supports_quant_fusion = get_fi_ar_quant_workspace(**options) is not None
        self.disabled = False

    def register_patterns(self): ...

    def is_applicable_for_range(self, compile_range):
        return not self.disabled
