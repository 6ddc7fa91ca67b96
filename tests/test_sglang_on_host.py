"""`make check-sglang` runs a release's own groups and layers, here small ones, and sees what is not served."""

import sys
from pathlib import Path

import pytest
import sglang_on_host

HOOK_REGISTRY = """
import functools, pkgutil
from enum import Enum
from typing import NamedTuple

class HookSource(NamedTuple):
    plugin_name: str
    dist_name: str

HookType = Enum("HookType", "AFTER AROUND")

class HookRegistry:
    hooks, applied = [], 0
    @classmethod
    def register(cls, target, hook, hook_type, *, source=None):
        cls.hooks.append((target, hook, hook_type))
    @classmethod
    def apply_hooks(cls):
        while cls.applied < len(cls.hooks):
            target, hook, kind = cls.hooks[cls.applied]
            cls.applied += 1
            path, name = target.rsplit(".", 1)
            owner = pkgutil.resolve_name(path)
            setattr(owner, name, hooked(getattr(owner, name), hook, kind))

def hooked(original, hook, kind):
    @functools.wraps(original)
    def call(*arguments, **options):
        if kind is HookType.AROUND:
            return hook(original, *arguments, **options)
        result = original(*arguments, **options)
        hook(result, *arguments, **options)
        return result
    return call
"""
PLUGINS = """
from sglang.srt.plugins.hook_registry import HookRegistry
def load_plugins():
    for install, _distribution in load_plugins_by_group().values():
        install()
    HookRegistry.apply_hooks()
"""
PARALLEL_STATE = """
import torch
import torch.distributed as dist
from sglang.srt.distributed.device_communicators.custom_all_reduce import dispatch_custom_allreduce

class GroupCoordinator:
    def __init__(self, group_ranks, local_rank, torch_distributed_backend, use_custom_allreduce, group_name=None,
                 recovered_rank=False, rank_offset=0, **options):
        self.cpu_group = self.device_group = dist.new_group(group_ranks[0])
        self.world_size, self.rank_in_group = len(group_ranks[0]), dist.get_rank()
        self.unique_name, self.device = group_name, torch.device("cpu")
        self.use_custom_allreduce, self.ca_comm = use_custom_allreduce, None
        if use_custom_allreduce:
            self.ca_comm = dispatch_custom_allreduce(group=self.cpu_group, device=0)(self.cpu_group, 0)
    def _can_use_flashinfer_allreduce(self, input_):
        return True
    def _resolve_outplace_all_reduce_method(self, input_, should_use_pymscclpp_allreduce):
        return "ca" if self.ca_comm.should_custom_ar(input_) else None
    def _all_reduce_out_place(self, input_, method):
        return self.ca_comm.custom_all_reduce(input_)
"""
COMM_FUSION = """
import torch
from sglang.srt.utils.custom_op import register_custom_op
from sglang.srt.layers.dp_attention import is_dp_attention_enabled
from sglang.srt.runtime_context import get_parallel
from sglang.srt.layers.moe.utils import post_experts_reduction_group
def pre_initialize_workspaces(max_token_num, hidden_dim, dtype, use_oneshot=None): ...
def resolve_fusion_group(*, use_attn_tp_group):
    group = post_experts_reduction_group()
    return group.world_size, group.rank_in_group, group
def fake(input_tensor, residual, weight, eps, max_token_num, use_attn_tp_group=True):
    return torch.empty_like(input_tensor), torch.empty_like(residual)
@register_custom_op(fake_impl=fake)
def flashinfer_allreduce_residual_rmsnorm(
    input_tensor: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, max_token_num: int,
    use_attn_tp_group: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    raise NotImplementedError
"""
CUSTOM_OP = """
import functools
import torch
from sglang.srt.utils.common import direct_register_custom_op
def register_custom_op(fake_impl):
    def register(function):
        direct_register_custom_op(op_name=function.__name__, op_func=function, mutates_args=[], fake_impl=fake_impl)
        op = getattr(torch.ops.sglang, function.__name__)
        return functools.wraps(function)(lambda *arguments, **options: op(*arguments, **options))
    return register
"""
PUSH_FUSION = """
import torch
import sglang.kernels.ops.communication.all_reduce_fusion as kernels
class CustomAllReduceFusion:
    def __init__(self, *, hidden_size, defers_finalize): ...
    def _ffn_input_add_norm(self, plan, rows, residual, batch):
        from sglang.srt.batch_invariant_ops import is_batch_invariant_mode_enabled
        if is_batch_invariant_mode_enabled():
            return None
        norm, place = plan.norm, torch.empty_like(residual)
        return kernels.all_reduce_residual_norm(
            rows, residual, norm.weight, norm.variance_epsilon, world_size=2, residual_out=place)
    def _all_reduce_add_norm(self, plan, owed, residual, batch, post_residual_addition):
        return self._ffn_input_add_norm(plan, owed.partial, residual, batch)
"""
PUSH_KERNELS = """
registered = {}
def register_comm(comm): registered[comm.world_size] = comm
def get_registered_comm(world_size): return registered.get(world_size)
def all_reduce_residual_norm(input, residual, norm_weight, norm_eps, *, world_size, gemma=False, residual_out=None,
                             cluster_size=None, two_shot=None, vecs_per_thread=None):
    raise NotImplementedError
"""
MINIMAX = """
class MiniMaxM2QKRMSNorm:
    def __init__(self, q_norm, k_norm): ...
    def forward(self, q, k):
        return q, k
"""
CUTEDSL = """
from sglang.srt.layers.flashinfer_mnnvl_cutedsl import get_flashinfer_mnnvl_cutedsl_ar_fusion
class CuteDSLWorkspace:
    def __init__(self, *, hidden_size, top_k, rms_epsilon):
        self.hidden_size, self.rms_epsilon = hidden_size, rms_epsilon
    def prepare(self, *, max_m):
        self._workspace = get_flashinfer_mnnvl_cutedsl_ar_fusion(max_m=max_m)
    def supports(self, m):
        return self._workspace.supports(m)
    def finalize(self, handoff, residual, gamma):
        names = "routed_output", "expert_weights", "permuted_indices", "gated_shared_output"
        experts = {name: getattr(handoff, name) for name in names}
        return self._workspace.moe_finalize_all_reduce_rms_norm(**experts, residual=residual, gamma=gamma)
    def all_reduce_residual_rms_norm(self, local_contribution, residual, gamma):
        return self._workspace.all_reduce_residual_rms_norm(
            local_contribution=local_contribution, residual=residual, gamma=gamma)
"""
MODEL_LOADER = """
def get_model_architecture(model_config):
    from sglang.srt.models.registry import ModelRegistry
    return ModelRegistry.resolve_model_cls(model_config)
"""
RELEASE = {
    "plugins/hook_registry": HOOK_REGISTRY,
    "plugins/__init__": PLUGINS,
    "distributed/parallel_state": PARALLEL_STATE,
    "layers/flashinfer_comm_fusion": COMM_FUSION,
    "layers/layer_boundary/residual/add_norm": "def flashinfer_ar_fusion_applies(batch_size): return False",
    "layers/layer_boundary/fusions/cutedsl": CUTEDSL,
    "model_loader/utils": MODEL_LOADER,
    "models/minimax_m2": MINIMAX,
    "utils/custom_op": CUSTOM_OP,
    "layers/layer_boundary/fusions/custom_all_reduce_fusion": PUSH_FUSION,
    "../kernels/ops/communication/all_reduce_fusion": PUSH_KERNELS,
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "before", "after", "status"),
    [
        ("models/minimax_m2", "", "", 0),
        ("distributed/parallel_state", "recovered_rank=False", "is_recovered=False", 1),
        ("layers/flashinfer_comm_fusion", "weight: torch", "gamma: torch", 1),
        ("models/minimax_m2", "q_norm, k_norm", "norms, other", 1),
        ("layers/layer_boundary/fusions/cutedsl", "max_m", "most_rows", 1),
        ("../kernels/ops/communication/all_reduce_fusion", "norm_weight", "gamma", 1),
    ],
)
def test_what_the_plugin_does_not_serve_is_seen(monkeypatch, tmp_path, capsys, module, before, after, status):
    for name, text in RELEASE.items():
        file = Path(tmp_path, "sglang", "srt", f"{name}.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace(before, after) if name == module else text)
    monkeypatch.setattr(sys, "argv", ["sglang_on_host.py", str(tmp_path)])
    assert sglang_on_host.main() == status
    assert capsys.readouterr().out.startswith(f"{tmp_path}: {'FAILED' if status else 'groups, fused norms'}")
