"""The workspaces of this process, one per group and size, for callers that keep none themselves."""

from __future__ import annotations

import threading
from collections.abc import Hashable

import torch

from lamport_rs import _core
from lamport_rs._core import LamportError
from lamport_rs.exchange import Group, all_gather_over, resolve_group
from lamport_rs.workspace import LamportWorkspace

_lock = threading.Lock()
_entries: dict[Hashable, _Entry] = {}


class _Entry:
    """A workspace that is there or being created."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workspace: LamportWorkspace | None = None


def get_allreduce_workspace(
    rank: int,
    world_size: int,
    comm_size: int | None = None,
    max_tokens: int = 16384,
    process_group: Group = None,
) -> torch.Tensor:
    """Return the pointer table of this process's workspace for the group, creating it on the first call.

    The first call is collective; further calls with the same arguments return at once. The cache holds the group
    itself, so that another group can never be taken for it. Safe to call from several threads. A workspace that failed
    stays in the cache until `clear_workspace_cache()` is called, on every rank.

    Args:
        rank: This rank.
        world_size: Ranks in the group, 2 to 16.
        comm_size: Bytes per slot; None for what the fused Q+K operation takes for `max_tokens` tokens.
        max_tokens: Most tokens per operation; used if `comm_size` is None.
        process_group: As for `LamportWorkspace`.

    Returns:
        int64 tensor of shape `[3 * world_size + 2]`, as `LamportWorkspace.workspace` describes.

    Raises:
        LamportError: As for `LamportWorkspace`. Nothing is cached then.
    """
    group = resolve_group(process_group)
    if comm_size is None:
        try:
            comm_size = LamportWorkspace.compute_comm_size_for_minimax(max_tokens, world_size)
        except LamportError as error:
            # The peers may already be waiting in the exchange.
            _core.refuse(rank, world_size, str(error), all_gather_over(group))
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    key = (group, rank, world_size, comm_size, device)
    with _lock:
        entry = _entries.setdefault(key, _Entry())
    # One lock per entry: ranks that are threads of one process wait for each other while they create theirs.
    with entry.lock:
        if entry.workspace is None:
            entry.workspace = LamportWorkspace(rank, world_size, comm_size, group)
        return entry.workspace.workspace


def clear_workspace_cache() -> None:
    """Clean up all cached workspaces and forget their groups. Not collective.

    Operations on their tables raise from then on. Call it before `torch.distributed.destroy_process_group()`, when no
    operation is running on any rank.
    """
    with _lock:
        entries = list(_entries.values())
        _entries.clear()
    for entry in entries:
        with entry.lock:
            if entry.workspace is not None:
                entry.workspace.cleanup()
                entry.workspace = None
