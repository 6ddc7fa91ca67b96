"""Experts' rows that the next norm's all-reduce puts together: what SGLang has FlashInfer's CuTe DSL kernels for.

SGLang prepares a workspace of FlashInfer's for it, where `--flashinfer-allreduce-fusion-backend cutedsl` asks for that.
FlashInfer's is kept: it takes what is larger.
"""

from __future__ import annotations

from typing import Any

import torch

from lamport_rs._core import __version__
from lamport_rs.sglang_plugin import hooks, operators
from lamport_rs.sglang_plugin.communicator import MAX_SIZE
from lamport_rs.sglang_plugin.fused import PART, workspace_for
from lamport_rs.sglang_plugin.groups import groups, is_served, leave_to_sglang
from lamport_rs.sglang_plugin.log import logger

DTYPE = torch.bfloat16
"""Of all rows that SGLang's workspace takes."""
MAX_SENT = 1 << 20
"""Most bytes that a rank may send for experts' rows: each sends all of them to every other, in one shot."""


class FusedExperts:
    """What SGLang asks of its workspace for fused sums of experts' rows and of others."""

    def __init__(self, group: str, own: Any, eps: float, rows: int, tokens: int) -> None:
        """Take over from `own`, SGLang's object, by the workspace of the group of that name.

        Args:
            group: Its name.
            own: What takes the rest.
            eps: Of the norms.
            rows: Most rows that are summed.
            tokens: Most tokens whose rows experts have made.
        """
        self._group, self._own, self._eps, self._rows, self._tokens = group, own, eps, rows, tokens

    def moe_finalize_all_reduce_rms_norm(
        self,
        *,
        routed_output: torch.Tensor,
        expert_weights: torch.Tensor,
        permuted_indices: torch.Tensor,
        gated_shared_output: torch.Tensor | None,
        residual: torch.Tensor,
        gamma: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised rows and the new residual, of rows that a layer's experts have made."""
        is_token_by_token = permuted_indices.shape[0] == residual.shape[0] and (
            gated_shared_output is None or gated_shared_output.shape == residual.shape
        )
        if is_token_by_token and self._takes(routed_output, residual, gamma, self._tokens):
            experts = routed_output, permuted_indices, expert_weights
            return operators.moe_finalize_rms_norm(
                *experts, gated_shared_output, residual, gamma, self._eps, self._group
            )
        unserved: tuple[torch.Tensor, torch.Tensor] = self._own.moe_finalize_all_reduce_rms_norm(
            routed_output=routed_output,
            expert_weights=expert_weights,
            permuted_indices=permuted_indices,
            gated_shared_output=gated_shared_output,
            residual=residual,
            gamma=gamma,
        )
        return unserved

    def all_reduce_residual_rms_norm(
        self, *, local_contribution: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised rows and the new residual."""
        fits = local_contribution.shape == residual.shape
        if fits and self._takes(local_contribution, residual, gamma, self._rows):
            return operators.all_reduce_rms_norm(local_contribution, residual, gamma, self._eps, self._group)
        unserved: tuple[torch.Tensor, torch.Tensor] = self._own.all_reduce_residual_rms_norm(
            local_contribution=local_contribution, residual=residual, gamma=gamma
        )
        return unserved

    def _takes(self, rows: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor, most: int) -> bool:
        """Whether the package's workspace does: the same on every rank."""
        dtypes_fit = rows.dtype == DTYPE and operators.dtypes_fit(rows, residual, gamma)
        return dtypes_fit and 0 < residual.shape[0] <= most

    def __getattr__(self, name: str) -> Any:
        if (own := self.__dict__.get("_own")) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(own, name)


def register_hooks() -> None:
    """Have SGLang tell when it has prepared its workspace, if it has this kind of fusion."""
    if hooks.MODEL_CHOICE.obstacle() is None:
        hooks.when_model_is_chosen(hooks.CUTEDSL, hook_preparation)


def hook_preparation() -> None:
    """Have SGLang's workspace replaced once it has been prepared."""
    if (obstacle := hooks.EXPERTS_PREPARATION.obstacle()) is not None:
        leave_to_sglang("fused sums of experts' rows", obstacle)
        return
    hooks.register(hooks.EXPERTS_PREPARATION, replace_workspace, "AFTER")
    hooks.apply()


def replace_workspace(_result: Any, service: Any, *_arguments: Any, **_options: Any) -> None:
    """Put the package in front of FlashInfer's workspace, on all ranks or on none. Collective for the first time."""
    try:
        group, own = hooks.PARALLEL.find()().tp_group, service._workspace
        width, eps = int(service.hidden_size), float(service.rms_epsilon)
    except Exception as error:  # Nothing has been asked of the other ranks yet, and they come here as well.
        leave_to_sglang("fused sums of experts' rows", repr(error))
        return
    if isinstance(own, FusedExperts) or group.world_size == 1 or not is_served(group.device):
        return
    if PART not in groups.parts_of(group.cpu_group):
        return
    rows = MAX_SIZE // (width * DTYPE.itemsize)
    workspace = workspace_for(group, rows, width, DTYPE)
    if workspace is None:
        return
    operators.norm_workspaces[group.unique_name] = workspace
    tokens = MAX_SENT // ((group.world_size - 1) * width * DTYPE.itemsize)
    service._workspace = FusedExperts(group.unique_name, own, eps, rows, tokens)
    if group.rank_in_group == 0:
        logger.info(
            "lamport_rs %s finalises experts' rows with all-reduce, residual and RMSNorm in the place of FlashInfer: "
            "group %s, up to %d tokens of %d (%d where no experts are), %.0f MiB of memory for each rank",
            *(__version__, group.unique_name, tokens, width, rows, workspace.memory_bytes / 2**20),
        )
