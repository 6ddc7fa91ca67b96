"""The workspaces of this process, one per group and size, for callers that keep none themselves."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from concurrent.futures import Future

import torch

from lamport_rs._core import LamportError
from lamport_rs.arguments import as_integer, refused_on_all_ranks
from lamport_rs.backends import resolve_device
from lamport_rs.exchange import Group, all_gather_over, resolve_group
from lamport_rs.workspace import LamportWorkspace

_lock = threading.Lock()
_entries: dict[Hashable, Future[LamportWorkspace]] = {}
"""Workspaces that are there or being created."""


class _ByIdentity:
    """A group that cannot be hashed, as part of a key. It holds the group, so that no other gets its `id()`."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def __hash__(self) -> int:
        return id(self._group)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other._group is self._group


def get_allreduce_workspace(
    rank: int,
    world_size: int,
    comm_size: int | None = None,
    max_tokens: int = 16384,
    process_group: Group = None,
    *,
    device: torch.device | str | int | None = None,
) -> torch.Tensor:
    """Return the pointer table of this process's workspace for the group, creating it on the first call.

    The first call is collective; further calls with the same arguments return at once. The cache holds the group
    itself, so that another group can never be taken for it; callables are told apart as dictionaries tell them, or by
    identity if they cannot be hashed. Safe to call from several threads: calls that come while the workspace is being
    created wait for it, and raise what that raises. A workspace that failed in use stays in the cache until
    `clear_workspace_cache()` is called, on every rank.

    Args:
        rank: This rank.
        world_size: Ranks in the group, 2 to 16.
        comm_size: Bytes per slot; None for what the fused Q+K operation takes for `max_tokens` tokens.
        max_tokens: Most tokens per operation; used if `comm_size` is None.
        process_group: As for `LamportWorkspace`.
        device: As for `LamportWorkspace`; workspaces of different devices are different ones.

    Returns:
        int64 tensor of shape `[3 * world_size + 2]`, as `LamportWorkspace.workspace` describes.

    Raises:
        LamportError: As for `LamportWorkspace`. Nothing is cached then.
    """
    group = resolve_group(process_group)
    with refused_on_all_ranks(rank, world_size, all_gather_over(group)):
        rank, world_size = as_integer("rank", rank), as_integer("world_size", world_size)
        if comm_size is None:
            tokens = as_integer("max_tokens", max_tokens)
            comm_size = LamportWorkspace.compute_comm_size_for_minimax(tokens, world_size)
        comm_size = as_integer("comm_size", comm_size)
        resolved = resolve_device("auto", device)
    key = (_hashable(group), rank, world_size, comm_size, resolved)
    with _lock:
        entry = _entries.get(key)
        is_first = entry is None
        if entry is None:
            entry = _entries[key] = Future()
    # Outside the lock: ranks that are threads of one process wait for each other while they create theirs.
    if is_first:
        try:
            entry.set_result(LamportWorkspace(rank, world_size, comm_size, group, device=resolved))
        except BaseException as error:
            _forget(key, entry, error)
            raise
    return entry.result().workspace


def clear_workspace_cache() -> None:
    """Clean up all cached workspaces and forget their groups. Not collective.

    Operations on their tables raise from then on. Call it before `torch.distributed.destroy_process_group()`, when no
    operation is running on any rank.
    """
    with _lock:
        entries = list(_entries.values())
        _entries.clear()
    for entry in entries:
        if entry.exception() is None:
            entry.result().cleanup()


def _hashable(group: Group) -> Hashable:
    try:
        hash(group)
    except TypeError:
        return _ByIdentity(group)
    return group


def _forget(key: Hashable, entry: Future[LamportWorkspace], error: BaseException) -> None:
    """Take a workspace that could not be created out of the cache, and let those who wait for it know."""
    with _lock:
        if _entries.get(key) is entry:
            del _entries[key]
    # An interrupt is for the thread that it came to.
    interrupted = LamportError(f"the thread that was creating this workspace was stopped by {error!r}")
    entry.set_exception(error if isinstance(error, Exception) else interrupted)
