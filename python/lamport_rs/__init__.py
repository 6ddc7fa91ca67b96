"""Low-latency collectives for tensor-parallel inference, with no barrier and no flag.

The data is its own flag: buffers are filled with a sentinel, each rank stores its data straight into its peers'
memory, and a reader spins until the sentinel is gone (the Lamport protocol).

>>> import lamport_rs
>>> workspace = lamport_rs.LamportWorkspace(rank, world_size, comm_size, process_group)  # doctest: +SKIP
>>> total = lamport_rs.all_reduce(tensor, workspace)  # doctest: +SKIP
"""

from lamport_rs import torch_operators as _torch_operators  # noqa: F401  (registers torch.ops.lamport_rs)
from lamport_rs._core import LamportError, LamportMismatchError, LamportSizeError, LamportTimeoutError, __version__
from lamport_rs.buffer import IpcBuffer, lamport_fill_neg_zero
from lamport_rs.cache import clear_workspace_cache, get_allreduce_workspace
from lamport_rs.operations import all_reduce, all_reduce_rms_norm, minimax_allreduce_rms, minimax_allreduce_rms_qk
from lamport_rs.workspace import LamportWorkspace, bind_to_thread

__all__ = [
    "IpcBuffer",
    "LamportError",
    "LamportMismatchError",
    "LamportSizeError",
    "LamportTimeoutError",
    "LamportWorkspace",
    "__version__",
    "all_reduce",
    "all_reduce_rms_norm",
    "bind_to_thread",
    "clear_workspace_cache",
    "get_allreduce_workspace",
    "lamport_fill_neg_zero",
    "minimax_allreduce_rms",
    "minimax_allreduce_rms_qk",
]
