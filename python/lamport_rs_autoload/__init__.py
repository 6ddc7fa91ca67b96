"""What every `import torch` runs, through the entry point group `torch.backends`: the name "lamport" becomes known.

It must not take time, and must not fail: it loads nothing but itself. So it is a package of its own: `lamport_rs` is
loaded when a process group of this backend is made.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist

BACKEND = "lamport"
"""The name of the backend of torch.distributed."""


def register() -> None:
    """Make `torch.distributed.init_process_group("lamport")` known to torch. Safe to call twice."""
    import torch.distributed as dist

    if dist.is_available() and BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _make_group, extended_api=True, devices=["cpu", "cuda"])
    if "lamport_rs" in sys.modules:
        # It was imported before torch, and could not register the operators. With a torch that it does not know it
        # cannot either, and says so at their first use.
        with contextlib.suppress(ImportError):
            import lamport_rs.torch_operators  # noqa: F401


def _make_group(options: Any, backend_options: Any) -> dist.ProcessGroup:
    from lamport_rs.distributed import make_group

    return make_group(options, backend_options)
