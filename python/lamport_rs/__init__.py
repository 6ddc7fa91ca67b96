"""Low-latency collectives for tensor-parallel inference, with no barrier and no flag.

The data is its own flag: buffers are filled with a sentinel, each rank stores its data straight into its peers'
memory, and a reader spins until the sentinel is gone (the Lamport protocol).

>>> import lamport_rs
>>> workspace = lamport_rs.LamportWorkspace(rank, world_size, comm_size, process_group)  # doctest: +SKIP
>>> total = lamport_rs.all_reduce(tensor, workspace)  # doctest: +SKIP

The import is quick and leaves torch alone. `torch.ops.lamport_rs` is registered at once if torch has been imported,
else when it is (by the package `lamport_rs_autoload`), or with the first use of what needs torch.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from lamport_rs._core import (
    TABLE_ABI_VERSION,
    LamportAbortedError,
    LamportError,
    LamportMismatchError,
    LamportSizeError,
    LamportTimeoutError,
    __version__,
    release_memory,
)
from lamport_rs._core import collectives as _collectives

if TYPE_CHECKING:
    from lamport_rs import operations
    from lamport_rs.buffer import IpcBuffer, lamport_fill_neg_zero
    from lamport_rs.cache import clear_workspace_cache, get_allreduce_workspace
    from lamport_rs.lifecycle import WorkspaceStatus
    from lamport_rs.operations import *  # noqa: F403
    from lamport_rs.workspace import LamportWorkspace, bind_to_thread

_OPERATIONS = [name for name, *_ in _collectives()]
"""The collectives: what the core describes. Type checkers find them in `lamport_rs.operations`."""

__all__ = [
    "TABLE_ABI_VERSION",
    "IpcBuffer",
    "LamportAbortedError",
    "LamportError",
    "LamportMismatchError",
    "LamportSizeError",
    "LamportTimeoutError",
    "LamportWorkspace",
    "WorkspaceStatus",
    "__version__",
    "bind_to_thread",
    "clear_workspace_cache",
    "get_allreduce_workspace",
    "lamport_fill_neg_zero",
    "release_memory",
]
if TYPE_CHECKING:
    __all__ += operations.__all__
else:
    __all__ += _OPERATIONS

_PUBLIC_MODULES = {
    "buffer": ("IpcBuffer", "lamport_fill_neg_zero"),
    "cache": ("clear_workspace_cache", "get_allreduce_workspace"),
    "lifecycle": ("WorkspaceStatus",),
    "operations": tuple(_OPERATIONS),
    "workspace": ("LamportWorkspace", "bind_to_thread"),
}
"""The names that need torch, by the modules they come from."""
_NEEDS_TORCH = {*_PUBLIC_MODULES, "torch_operators", *(name for names in _PUBLIC_MODULES.values() for name in names)}


def _torch_is_imported() -> bool:
    """Whether `import torch` has ended: while it runs, its names are not all there."""
    torch = sys.modules.get("torch")
    spec = getattr(torch, "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _load() -> None:
    """Import torch and what needs it, and register `torch.ops.lamport_rs`."""
    importlib.import_module("lamport_rs.torch_operators")
    for module, names in _PUBLIC_MODULES.items():
        loaded = importlib.import_module(f"lamport_rs.{module}")
        globals().update((name, getattr(loaded, name)) for name in names)


# Hidden from type checkers, to which a module with it has every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Nothing else: `from lamport_rs import <a submodule>` asks here before it imports.
        if name not in _NEEDS_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _load()
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_imported_before_torch = not _torch_is_imported()
"""Whether the operators were left for later. Importing `lamport_rs.torch_operators` registers them."""
if not _imported_before_torch:
    _load()
