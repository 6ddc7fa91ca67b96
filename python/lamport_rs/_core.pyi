"""Types of the Rust core."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

__version__: str
MAX_WORLD_SIZE: int
"""The most ranks that a group may have."""
HELD_COLUMNS: int
"""Columns of 16 bits up to which `all_reduce_quant` needs no place for the sum."""
TABLE_ABI_VERSION: int
"""Version of the pointer table's layout."""

class LamportError(RuntimeError):
    """What lamport_rs raises: bad arguments, disagreement between ranks, and faults."""

class LamportTimeoutError(LamportError):
    """Peers did not come within the timeout."""

    missing_ranks: tuple[int, ...]

class LamportMismatchError(LamportError):
    """The ranks run different operations, and the workspace can no longer be used."""

    rank: int
    """This rank."""
    operation: str
    """What it runs: number, name, shape, dtype and algorithm."""
    peer: int
    """A rank that differs."""
    peer_operation: str
    """What that one runs."""

class LamportAbortedError(LamportError):
    """A rank has ended, so that no operation of the group can complete."""

    rank: int
    """Which one; it may be this one."""
    cause: str
    """`"aborted"`, `"cleaned_up"`, `"failed"`, or `"ended"` with its process."""
    reason: str
    """Why, in its own words; empty if it gave none."""

class LamportSizeError(LamportError):
    """Slots that have no room for a row or a vector of every rank. Nothing was changed."""

class LamportLayoutError(LamportError):
    """An operand of which a copy will do. Nothing was changed."""

class LamportSingleRankError(LamportError):
    """An operation that the package computes with torch in a group of one. Nothing was changed."""

class Checked:
    """What a workspace's class inherits, so that its check takes no frame of the interpreter."""

    def _check_for(self, workspace: Workspace) -> None: ...
    def check(self) -> None: ...

class Workspace:
    """One rank's workspace: over the memory of a CUDA device, or over shared memory."""

    def __new__(
        cls,
        rank: int,
        world_size: int,
        comm_size: int,
        timeout: float,
        two_shot_from: int | None,
        cuda_index: int | None,
        all_gather: Callable[[bytes], list[bytes]],
    ) -> Workspace: ...
    def table(self) -> Table: ...
    def synchronize(self) -> None: ...
    def memory_bytes(self) -> int: ...
    def abort(self, reason: str) -> None: ...
    def abort_hook(self, reason: str) -> tuple[int, int]: ...
    def reset(self, timeout: float | None) -> None: ...
    def status(self) -> tuple[int, str | None, list[tuple[str, int, int]], float, list[int]]: ...
    def phases(self) -> list[tuple[str, float]]: ...
    def unwatched(self) -> str | None: ...
    def expect_an_end(self) -> None: ...
    def clean_up(self) -> None: ...

class Table:
    """A workspace's pointer table, for torch.from_dlpack."""

    def __dlpack__(self, **options: Any) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Buffer:
    """Plain memory that crosses processes."""

    def __new__(
        cls,
        rank: int,
        world_size: int,
        size: int,
        timeout: float,
        cuda_index: int | None,
        all_gather: Callable[[bytes], list[bytes]],
    ) -> Buffer: ...
    def pointers(self) -> list[int]: ...

def bind_to_thread(workspace: Workspace | torch.Tensor) -> None: ...
def obstacle(
    workspace: Workspace | torch.Tensor, call: tuple[str, list[int], str, str, str, str, int, int]
) -> str | None: ...
def prepare(workspace: Workspace | torch.Tensor, call: tuple[str, list[int], str, str, str, str, int, int]) -> None: ...
def note_refusal(*named: object) -> None:
    """Count a call that was refused, on each workspace or table among what it named."""

def refusals_noted() -> int:
    """Return how many refusals this thread has noted: whether one was in between."""

def cpu_quota(root: Path | None = None, own: Path | None = None) -> float | None:
    """Return how many cores' time the container lets this process use; None for no limit."""

def memory_limit(root: Path | None = None, own: Path | None = None) -> tuple[int, int] | None:
    """Return the container's limit that leaves the least memory, and bytes used of it; None for no limit."""

def refuse(rank: int, world_size: int, reason: str, all_gather: Callable[[bytes], list[bytes]]) -> NoReturn: ...
def cuda_obstacle() -> str | None: ...
def interpreter_ends() -> None: ...
def release_memory(*, captured: bool = False) -> int: ...
def fill_sentinel(device_ptr: int, size_bytes: int, index: int) -> None: ...
def comm_size_within(memory_bytes: int, world_size: int) -> int: ...
def minimax_comm_size(max_tokens: int, world_size: int, fused_qk: bool) -> int: ...
def all_reduce_comm_size(max_bytes: int, world_size: int) -> int: ...
def quant_formats() -> list[tuple[str, bool, int | None, str, int, str, int, str]]: ...
def collectives() -> list[tuple[str, list[tuple[str, str, str | None]], list[str]]]:
    """Return each collective's name, arguments (type in a schema, name and default), and outputs."""

# The collectives: written by scripts/core_stub.py, and nothing behind this line by hand.
def all_reduce(
    input: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    algorithm: str,
    out: torch.Tensor,
) -> None: ...
def all_reduce_rms_norm(
    input: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    eps: float,
    weight_bias: float,
    algorithm: str,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None: ...
def all_reduce_rms_norm_quant(
    input: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    quant_format: str,
    scale: torch.Tensor | None,
    eps: float,
    weight_bias: float,
    with_norm: bool,
    algorithm: str,
    out: torch.Tensor,
    scale_out: torch.Tensor,
    residual_out: torch.Tensor,
    norm_out: torch.Tensor,
) -> None: ...
def all_reduce_layer_norm(
    input: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    algorithm: str,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None: ...
def all_reduce_quant(
    input: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    quant_format: str,
    scale: torch.Tensor | None,
    with_sum: bool,
    algorithm: str,
    out: torch.Tensor,
    scale_out: torch.Tensor,
    sum_out: torch.Tensor,
) -> None: ...
def moe_finalize_all_reduce(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    shared_rows: torch.Tensor | None,
    out: torch.Tensor,
) -> None: ...
def moe_finalize_all_reduce_rms_norm(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    shared_rows: torch.Tensor | None,
    eps: float,
    weight_bias: float,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None: ...
def minimax_allreduce_rms(
    input: torch.Tensor,
    norm_weight: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    rank: int,
    nranks: int,
    eps: float,
    out: torch.Tensor,
) -> None: ...
def minimax_allreduce_rms_qk(
    qkv: torch.Tensor,
    norm_weight_q: torch.Tensor,
    norm_weight_k: torch.Tensor,
    workspace: Workspace | torch.Tensor,
    q_size: int,
    kv_size: int,
    rank: int,
    nranks: int,
    eps: float,
    q_out: torch.Tensor,
    k_out: torch.Tensor,
) -> None: ...
