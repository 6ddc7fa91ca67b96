"""What a kernel of torch's collectives is asked to compute: whether a boxed `ReduceOp` is the sum.

Python gets the operation of a call in C++ as an object of TorchScript. torch 2.11 lets it be asked (`op`); torch 2.6
does not, and shows nothing of it. There gloo is asked: of sparse tensors it takes sums only, and refuses all else
before it does anything. The group for that is this process alone, so the answer needs no peer.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

_SUM = dist.ReduceOp.SUM.value
_REFUSED = "only works with ReduceOp.SUM"
"""In gloo's error for all operations but the sum."""


def is_sum(reduce_op: Any) -> bool:
    """Whether the operand `reduce_op` of the operator `c10d::allreduce_` is the sum."""
    if hasattr(reduce_op, "op"):
        return bool(reduce_op.op() == _SUM)
    return gloo_takes_for_sum(reduce_op)


def gloo_takes_for_sum(reduce_op: Any) -> bool:
    """`is_sum`, for versions of torch whose operations cannot be asked: some 10 to 50 µs."""
    # A new one each time: gloo's thread writes to it.
    nothing = torch.sparse_coo_tensor(*_NO_ELEMENTS, (1,), check_invariants=False)
    try:
        torch.ops.c10d.allreduce_.default.redispatch(_SPARSE, [nothing], _group_of_one(), reduce_op, None, -1)
    except RuntimeError as error:
        if _REFUSED in str(error):
            return False
        raise
    return True


_NO_ELEMENTS = torch.empty((1, 0), dtype=torch.int64, device="cpu"), torch.empty(0, dtype=torch.float32, device="cpu")
_SPARSE: Any = torch._C.DispatchKeySet(torch._C.DispatchKey.SparseCPU)


@functools.cache
def _group_of_one() -> Any:
    store = HashStore()
    group: Any = dist.ProcessGroup(store, 0, 1)
    gloo_class: Any = dist.ProcessGroupGloo
    options = gloo_class._Options()
    # Not by the host's name, which need not resolve.
    options._devices = [gloo_class.create_device(hostname="127.0.0.1")]
    options._threads = 1
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo_class(store, 0, 1, options))
    group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    # It stays until the process ends. torch 2.6 destroys groups with the interpreter's lock held, and waits for gloo's
    # thread, which may be waiting for that lock to let go of a tensor.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    return group.boxed()
