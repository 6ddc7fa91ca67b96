"""The rule that switches the fusion on, and the tables of optimisation levels that hold it."""

from vllm import envs, record


def enable_allreduce_rms_fusion(cfg):
    from vllm.platforms import current_platform
    from vllm.utils.flashinfer import has_flashinfer

    if record["batch_invariance"]["rule_asks"] and envs.VLLM_BATCH_INVARIANT:
        return False
    return cfg.tensor_parallel_size > 1 and current_platform.is_cuda() and has_flashinfer()


LEVEL_1 = {"compilation_config": {"pass_config": {"fuse_allreduce_rms": False}}}
LEVEL_2 = {"compilation_config": {"pass_config": {"fuse_allreduce_rms": enable_allreduce_rms_fusion}}}
LEVELS = {1: LEVEL_1, 2: LEVEL_2}
