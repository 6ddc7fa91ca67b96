"""The workspaces of this process, one per group and size, for callers that keep none themselves."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Hashable

import torch

from lamport_rs._core import LamportError
from lamport_rs.arguments import as_integer, refused_on_all_ranks
from lamport_rs.backends import resolve_device
from lamport_rs.rendezvous import Group, all_gather_over, resolve_group
from lamport_rs.tracing import never_compiled
from lamport_rs.turns import hashable, in_turn
from lamport_rs.workspace import LamportWorkspace


class _Entry:
    """A workspace that is there, or that a thread is creating.

    A signal's handler may raise, or come here again, at any line. So an entry that is left half-way is as good as a new
    one, and nothing waits for the thread that it runs in.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_being_created = False
        self.workspace: LamportWorkspace | None = None
        self.error: Exception | None = None
        """Why it could not be created: for the threads that waited for it. Others get a new entry."""

    def get(self, create: Callable[[], LamportWorkspace]) -> LamportWorkspace:
        """Return the workspace, made by `create` if this is the first call."""
        with self._lock:
            if self.workspace is not None:
                return self.workspace
            if self.error is not None:
                # Not the same object, which would gather the traceback of every thread.
                raise copy.copy(self.error) from self.error
            if self._is_being_created:
                raise LamportError("this workspace is asked for while the same thread is creating it")
            self._is_being_created = True
            try:
                self.workspace = create()
            except Exception as error:
                self.error = error
                raise
            except BaseException as error:
                # An interrupt is for the thread that it came to.
                self.error = LamportError(f"the thread that was creating this workspace was stopped by {error!r}")
                raise
            finally:
                self._is_being_created = False
            return self.workspace


_lock = threading.RLock()
_entries: dict[tuple[Hashable, ...], _Entry] = {}
_left_behind: list[object] = []
"""In a forked process: its parent's groups and workspaces. To let them go would be to clean up after the parent."""


@never_compiled
def get_allreduce_workspace(
    rank: int,
    world_size: int,
    comm_size: int | None = None,
    max_tokens: int = 16384,
    process_group: Group = None,
    *,
    device: torch.device | str | int | None = None,
    timeout: float | None = None,
) -> torch.Tensor:
    """Return the pointer table of this process's workspace for the group, creating it on the first call.

    The first call is collective; further calls with the same arguments return at once. The cache holds the group
    itself, so that another group can never be taken for it; callables are told apart as dictionaries tell them, or by
    identity if they cannot be hashed. Safe to call from several threads: calls that come while the workspace is being
    created wait for it, and raise what that raises. Threads that ask for different workspaces of a group create them
    one after the other; if the order is not the same on every rank, all ranks raise. A workspace that failed in use
    stays in the cache until `clear_workspace_cache()` is called, on every rank.

    Args:
        rank: This rank.
        world_size: Ranks in the group, 1 to 16.
        comm_size: Bytes per slot; None for what the fused Q+K operation takes for `max_tokens` tokens.
        max_tokens: Most tokens per operation; used if `comm_size` is None.
        process_group: As for `LamportWorkspace`.
        device: As for `LamportWorkspace`; workspaces of different devices are different ones.
        timeout: As for `LamportWorkspace`; that of the call that creates the workspace counts.

    Returns:
        int64 tensor of shape `[3 * world_size + 2]`, as `LamportWorkspace.workspace` describes.

    Raises:
        LamportError: As for `LamportWorkspace`, and nothing is cached then. Arguments of a wrong type are an error of
            all ranks only until there is a workspace of the group: later calls may be one rank's own.
    """
    group = resolve_group(process_group)
    known = hashable(group)
    # Who has a workspace of the group need not be waiting in this call.
    all_gather = None if _is_known(known) else in_turn(all_gather_over(group, device, timeout), group, rank, timeout)
    with refused_on_all_ranks(rank, world_size, all_gather):
        rank, world_size = as_integer("rank", rank), as_integer("world_size", world_size)
        if comm_size is None:
            tokens = as_integer("max_tokens", max_tokens)
            comm_size = LamportWorkspace.compute_comm_size_for_minimax(tokens, world_size)
        comm_size = as_integer("comm_size", comm_size)
        resolved = resolve_device("auto", device)
    key = (known, rank, world_size, comm_size, resolved)
    while (entry := _entries.setdefault(key, _Entry())).error is not None:
        _forget(key, entry)
    try:
        # Outside the lock: ranks that are threads of one process wait for each other while they create theirs.
        return entry.get(
            lambda: LamportWorkspace(rank, world_size, comm_size, group, device=resolved, timeout=timeout)
        ).workspace
    finally:
        if entry.workspace is None:
            _forget(key, entry)


@never_compiled
def clear_workspace_cache() -> None:
    """Clean up all cached workspaces and forget their groups. Not collective.

    Operations on their tables raise from then on. Call it before `torch.distributed.destroy_process_group()`, when no
    operation is running on any rank. A workspace that a thread is creating meanwhile is that thread's, and not cached.
    """
    for key, entry in list(_entries.items()):
        # One after the other, so that what an interrupt leaves is still there for the next call.
        if entry.workspace is not None:
            entry.workspace.cleanup()
        with _lock:
            if _entries.get(key) is entry:
                del _entries[key]


def _is_known(group: Hashable) -> bool:
    with _lock:
        # A list: a signal's handler may change the dictionary meanwhile.
        return any(key[0] == group for key, entry in list(_entries.items()) if entry.workspace is not None)


def _forget(key: tuple[Hashable, ...], entry: _Entry) -> None:
    """Take a workspace that could not be created out of the cache, unless it is still being created."""
    with _lock:
        if _entries.get(key) is entry and entry.error is not None:
            del _entries[key]


def _start_anew() -> None:
    """Forget, in a forked process, what is the parent's, and its lock, which another thread may have held."""
    global _lock
    _lock = threading.RLock()
    _left_behind.extend(_entries.items())
    _entries.clear()


os.register_at_fork(after_in_child=_start_anew)
