"""What engines' communicators have in common: sums by a workspace, and all else by the engine's own object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lamport_rs.plugin_groups import GroupWorkspace

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})


class PluginAllreduce:
    """The all-reduces of one group, by a workspace, and an object of the engine's for all else."""

    def __init__(self, workspace: GroupWorkspace, own: Any) -> None:
        """Take over from `own`; None if there is nothing else to be asked of it."""
        self._workspace, self._own = workspace, own
        self.disabled = False

    def _is_summable(self, inp: torch.Tensor) -> bool:
        """Whether a workspace takes such tensors: the same on every rank, for it depends on shape and dtype."""
        return not self.disabled and inp.numel() > 0 and inp.dtype in DTYPES

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Surround the capture of a CUDA graph. Sums need nothing; the engine's own object may."""
        if self._own is None:
            yield
            return
        with self._own.capture():
            yield

    def close(self) -> None:
        """Give the workspace up, and the engine's own object. Safe to call again."""
        if self.__dict__.get("disabled", True):
            return
        self.disabled = True
        self._workspace.close()
        if self._own is not None:
            self._own.close()

    def __del__(self) -> None:
        # The workspace alone: an engine's object ends itself, if it is dropped.
        if not self.__dict__.get("disabled", True):
            self.disabled = True
            self._workspace.close()

    def __getattr__(self, name: str) -> Any:
        if (own := self.__dict__.get("_own")) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(own, name)
