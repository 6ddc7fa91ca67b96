"""The life of a workspace: it works; it fails or is aborted, on all ranks; a reset mends it; it is given up."""

from __future__ import annotations

import atexit
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch

from lamport_rs._core import Checked, LamportError, interpreter_ends
from lamport_rs._core import Workspace as CoreWorkspace
from lamport_rs.arguments import as_seconds, as_text
from lamport_rs.observation import log_fault
from lamport_rs.tracing import never_compiled

# Peers hear of the end before the interpreter takes itself apart. What is registered later runs earlier.
atexit.register(interpreter_ends)
CLEANED_UP = "this workspace was cleaned up; create a new one on every rank"


@dataclass(frozen=True)
class WorkspaceStatus:
    """What a workspace has done and what became of it, on this rank."""

    failure: str | None
    """Why it cannot be used until a reset; None while it works."""
    resets: int
    """Times that it has begun anew."""
    operations: dict[str, int]
    """Operations that were called, by name. Replays of a CUDA graph are not seen."""
    bytes: dict[str, int]
    """Bytes of their inputs on this rank, by name."""
    longest_wait: float
    """Seconds of the longest wait that went beyond spinning, of operations that completed. On GPUs as the host sees it:
    of some 10 ms and more, up to that much too short, and none if `LAMPORT_RS_CHECK` is 0."""
    longest_wait_for: tuple[int, ...]
    """The ranks that it waited for at last."""


_Self = TypeVar("_Self", bound="WorkspaceLifecycle")


class WorkspaceLifecycle(Checked):
    """What may be asked and done about the state of a workspace."""

    _core: CoreWorkspace | None
    _table: torch.Tensor | None

    @never_compiled
    def abort(self, reason: object) -> None:
        """End the operations of all ranks, those that wait among them: they raise `LamportAbortedError`.

        To be called by any thread, at any time; not collective. `reset`, on every rank, makes the workspace work again.
        One that waits for the others ends, too, on this rank and on others.
        On GPUs, kernels that wait end within 50 ms and leave NaN; what is called or checked later raises.

        Args:
            reason: Why, for the peers' errors: a text, or an exception or anything else, whose `str` is taken. Some 900
                bytes of it are told.
        """
        self._usable_core().abort(as_text(reason))

    @never_compiled
    def abort_hook(self, reason: object) -> tuple[int, int]:
        """Return what aborts from C: the address of a function `void (*)(void *)`, and that of its argument.

        The function does what `abort` does, but needs no interpreter: it waits for nothing, allocates nothing and takes
        no lock. A signal's handler may call it, and any thread, at any time and any number of times until the process
        ends, also when the workspace was cleaned up. Some KiB of memory stay for it until then: make one hook, early.

        Args:
            reason: As of `abort`.
        """
        return self._usable_core().abort_hook(as_text(reason))

    @never_compiled
    def reset(self, timeout: float | None = None) -> None:
        """Make a workspace that has failed work again, on the same memory. Collective: every rank calls it.

        Tables, and CUDA graphs that were captured before, are right again. All operations that were called before must
        have ended or failed: on a GPU it waits for the device. Numbers of operations begin at 1 again.

        Args:
            timeout: Seconds that it waits for the other ranks; 0 or infinite for no limit. None: one and a half times
                the workspace's own, as kernels that wait for a peer end then, and 30 s more.

        Raises:
            LamportTimeoutError: If ranks did not call it in time: `missing_ranks`. It can be called again, unless some
                ranks have begun anew and others have not.
            LamportAbortedError: If a rank was cleaned up, or is dead. If a rank aborts meanwhile: it can be called
                again then.
            LamportError: If an earlier reset ended half-way, or an operation is running on this rank.
        """
        self._usable_core().reset(None if timeout is None else as_seconds("timeout", timeout))

    def status(self) -> WorkspaceStatus:
        """Return what the workspace has done and what became of it, on this rank. Waits for nothing."""
        resets, failure, work, wait, ranks = self._usable_core().status()
        return WorkspaceStatus(
            failure=failure,
            resets=resets,
            operations={name: count for name, count, _ in work},
            bytes={name: size for name, _, size in work},
            longest_wait=wait,
            longest_wait_for=tuple(ranks),
        )

    @never_compiled
    def synchronize(self) -> None:
        """Wait for the device, replayed graphs included, and raise `LamportTimeoutError` if an operation missed a peer.

        On a GPU, operations run after the call that launched them has returned, and a kernel that missed a peer ends:
        the error comes with the next call, or with this one.
        """
        try:
            self._usable_core().synchronize()
        except LamportError as error:
            log_fault(error)
            raise

    @never_compiled
    def cleanup(self) -> None:
        """Give the workspace up: further operations raise. Its memory goes when its tables have gone too.

        Not collective, and safe to call twice. On GPUs, call it when no operation is running on any rank. It waits for
        the kernels on this rank's device; those that still wait for a peer after a second give up, and leave NaN. The
        memory that CUDA graphs have captured stays, but what they compute is NaN once a peer is missed; when they are
        gone, `release_memory(captured=True)` frees it. Ctrl-C ends the wait: it is cleaned up then too, and the memory
        stays until the kernels have ended, or a later call after that.

        On the host it may be called at any time, by any thread and by a signal's handler: an operation that waits then
        ends with an error. Peers that wait for this rank, or call an operation later, raise `LamportAbortedError`.
        """
        core, self._core, self._table = self._core, None, None
        if core is not None:
            core.clean_up()

    close = cleanup

    def _usable_core(self) -> CoreWorkspace:
        if self._core is None:
            raise LamportError(CLEANED_UP)
        return self._core

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._core is not None:
            self._core.expect_an_end()
        self.cleanup()
