"""The backend "lamport" of torch.distributed: sums of a process group go through a workspace of this package.

A group of this backend is a plain `torch.distributed.ProcessGroup` with NCCL for CUDA tensors and gloo for CPU tensors.
Whatever asks for its type, its store or its NCCL communicator finds what it knows. Only the way to the all-reduce is
another one, for groups that are registered here:

- What is within `torch.distributed.all_reduce` is a function that sums at once. This is the quick way.
- `ProcessGroup.allreduce`, which it calls for all that is less simple, is a Python method that does so, too.
- C++ (functional collectives, compiled code, DistributedDataParallel) calls the operator `c10d::allreduce_`. It gets a
  kernel in front of those of the backends, under the dispatch key BackendSelect. So do tracers and profilers, which
  want to see an operator.

All are there from the first such group on, and pass on what is not for them. What may decide who sums is only what all
ranks have in common: the order of calls, the dtype, the size.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import lamport_rs_autoload
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (  # type: ignore[attr-defined]
    PrefixStore,
    _create_work_from_future,
)
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]
from torch.overrides import has_torch_function_unary as _has_torch_function

from lamport_rs._core import LamportError
from lamport_rs.group_sums import GroupSums
from lamport_rs.reduce_op import is_sum
from lamport_rs.rendezvous import resolve_group
from lamport_rs.timeouts import default_timeout
from lamport_rs.tracing import is_recording, must_dispatch

_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})


def install(group: dist.ProcessGroup | None = None) -> None:
    """Let the sums of an existing process group go through the package, whatever its backend.

    For programs that insist on a group of NCCL or gloo: the group stays what it is, `get_backend` included. Its
    all-reduces with `ReduceOp.SUM` of float32, float16 and bfloat16 tensors go through a workspace, if the ranks share
    a machine, and all else is as before. To be called on every rank of the group, between the same two collectives of
    it. On ranks that are not in the group it does nothing, and neither does a second call.

    Args:
        group: The process group; None for the default group.

    Raises:
        LamportError: If `group` is none, or None and there is no default group.
    """
    resolved = resolve_group(group)
    if isinstance(resolved, int) and resolved == dist.GroupMember.NON_GROUP_MEMBER:
        return
    if not isinstance(resolved, dist.ProcessGroup):
        what = "there is no default one" if group is None else f"not {type(group).__name__}"
        raise LamportError(f"group must be a torch process group, but {what}")
    if id(resolved) not in _groups:
        _register(resolved, GroupSums(_timeout_of(resolved)))


def make_group(options: Any, backend_options: Any) -> dist.ProcessGroup:
    """Return a process group of the backend "lamport": what torch calls when it makes one.

    Args:
        options: torch's `_DistributedBackendOptions`.
        backend_options: `ProcessGroupNCCL.Options`, or None; for NCCL.
    """
    rank, world_size, store = options.group_rank, options.group_size, options.store
    kinds = dist.ProcessGroup.BackendType
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    group = dist.ProcessGroup(store, rank, world_size)
    gloo = dist.ProcessGroupGloo(PrefixStore("gloo/", store), rank, world_size, timeout=options.timeout)
    gloo._set_sequence_number_for_group()
    group._register_backend(cpu, kinds.GLOO, gloo)
    if dist.is_nccl_available() and torch.cuda.is_available():
        nccl_options = dist.ProcessGroupNCCL.Options() if backend_options is None else backend_options
        nccl_options._timeout = options.timeout
        nccl_options.global_ranks_in_group = options.global_ranks_in_group
        nccl_options.group_name = options.group_id
        nccl = dist.ProcessGroupNCCL(PrefixStore("nccl/", store), rank, world_size, nccl_options)
        nccl._set_sequence_number_for_group()
        group._register_backend(cuda, kinds.NCCL, nccl)
        group._set_default_backend(kinds.NCCL)
    else:
        group._register_backend(cuda, kinds.GLOO, gloo)
        group._set_default_backend(kinds.GLOO)
    _register(group, GroupSums(options.timeout.total_seconds(), only=lamport_rs_autoload.BACKEND))
    return group


_groups: dict[int, GroupSums] = {}
"""By the identity of the group. Torch holds a group's object until the group is destroyed."""
_references: dict[int, weakref.ref[dist.ProcessGroup]] = {}


def _register(group: dist.ProcessGroup, sums: GroupSums) -> None:
    _hook()
    key = id(group)

    def forget(_reference: object) -> None:
        _references.pop(key, None)
        _groups.pop(key).close()

    _references[key] = weakref.ref(group, forget)
    _groups[key] = sums


def _timeout_of(group: dist.ProcessGroup) -> float:
    """Seconds that the group's backends wait for a peer, as far as they say."""
    for device in group._device_types:
        options = getattr(group._get_backend(device), "options", None)
        if options is not None:
            seconds: float = options._timeout.total_seconds()
            return seconds
    return default_timeout()


_SUM = dist.ReduceOp.SUM
_STRIDED = torch.strided
_TYPES = (torch.Tensor, torch.nn.Parameter)
_c10d: Any = dist.distributed_c10d
_plain_all_reduce: Any = getattr(_c10d.all_reduce, "__wrapped__", None)


# Not under another name: torch's log of errors has it.
def all_reduce(tensor: Any, op: Any = _SUM, group: Any = None, async_op: bool = False) -> Any:
    """The function within `torch.distributed.all_reduce`: a plain sum at once, all else as torch's own does it.

    Torch's own makes options for C++. To make them, and to read them in `allreduce`, takes longer than all else.
    """
    process_group = _c10d._world.default_pg if group is None else group
    sums = _groups.get(id(process_group))
    if (
        sums is not None
        and op is _SUM
        and type(tensor) in _TYPES
        and tensor.dtype in _DTYPES
        and tensor.layout is _STRIDED
        and type(process_group) is dist.ProcessGroup
        # Whoever wants to see the call or the operator.
        and not _has_torch_function(tensor)
        and not is_recording()
        and not _profiler_enabled()
        and process_group not in _c10d._world.pg_coalesce_state
        and tensor.numel() > 0
        # The first sum on a device is left to `allreduce`.
        and (device_sums := sums.find(tensor.get_device())) is not None
    ):
        device_sums.add(tensor)
        return _finished([tensor]) if async_op else None
    return _plain_all_reduce(tensor, op, group, async_op)


_Options: Any = dist.AllreduceOptions
_TELLS_ASYNC = hasattr(_Options(), "asyncOp")
"""Whether `allreduce` hears that its caller does not want a `Work`. The oldest versions of torch do not tell."""
_plain_allreduce: Any = vars(dist.ProcessGroup)["allreduce"]


# Not under another name: pybind11 knows by it that a call from here is for the method that this one stands before.
def allreduce(self: dist.ProcessGroup, *arguments: Any, **named: Any) -> Any:
    """`ProcessGroup.allreduce` for callers in Python. No more calls than needed: they are part of the latency."""
    if len(arguments) == 2 and not named:
        tensors, options = arguments
        if type(tensors) is list and len(tensors) == 1 and type(options) is _Options:
            tensor = tensors[0]
            # A tracer, a mode or a profiler wants to see the operator.
            is_watched = must_dispatch(tensor) or _profiler_enabled()
            if type(tensor) in _TYPES and tensor.layout is torch.strided and not is_watched:
                sums = _groups.get(id(self))
                is_sync = _TELLS_ASYNC and not options.asyncOp
                if sums is not None and tensor.dtype in _DTYPES and options.reduceOp == _SUM and sums.add(self, tensor):
                    return _done if is_sync else _finished(tensors)
                if is_sync and type(self) is dist.ProcessGroup:
                    # What the operator's kernels do. By way of the operator it would take twice as long.
                    backend: Any = self._get_backend(tensor.device)
                    return backend.allreduce(tensors, options)
    return _plain_allreduce(self, *arguments, **named)


def _operator_kernel(keys: Any, tensors: list[torch.Tensor], group: Any, reduce_op: Any, *rest: Any) -> Any:
    """`c10d::allreduce_` for callers in C++."""
    tensor = tensors[0]
    if (
        len(tensors) == 1
        and type(tensor) in _TYPES
        and tensor.layout is torch.strided
        and tensor.dtype in _DTYPES
        and (sums := _groups.get(id(unboxed := dist.ProcessGroup.unbox(group)))) is not None
        and is_sum(reduce_op)
        and sums.add(unboxed, tensor)
    ):
        return tensors, _finished(tensors).boxed()
    return torch.ops.c10d.allreduce_.default.redispatch(keys & _BEHIND, tensors, group, reduce_op, *rest)


_BEHIND: Any = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
"""The dispatch keys of the backends' own kernels."""


def _finished(tensors: list[torch.Tensor] | None) -> Any:
    """Return the `Work` of a sum that the current stream has, or of one that has ended on the CPU.

    Its future has the tensors, and events of their streams: who waits for it on another stream waits for the sum.
    """
    # Not `torch.futures.Future`, a class in Python around it: nobody gets this object, and it takes 0.5 µs more.
    future: Any = torch._C.Future([tensors[0].device] if tensors is not None and tensors[0].is_cuda else [])
    future.set_result(tensors)
    return _create_work_from_future(future)


_done = _finished(None)
"""For callers that only wait for it."""
_library: torch.library.Library | None = None


def _hook() -> None:
    """Stand before the all-reduce of torch's process groups."""
    global _library
    if _library is None:
        _library = torch.library.Library("c10d", "IMPL")
        _library.impl("allreduce_", _operator_kernel, "BackendSelect", with_keyset=True)
        group_class: Any = dist.ProcessGroup
        group_class.allreduce = allreduce
        _put_within(_c10d.all_reduce)


def _put_within(decorated: Any) -> None:
    """Have torch's decorator of `all_reduce` call the function here.

    So it is the same object to all that import it or compare it, the compiler among them. A version of torch in which
    it is made otherwise keeps what it has: `allreduce` serves it, more slowly.
    """
    parameters = [*inspect.signature(all_reduce).parameters]
    if _plain_all_reduce is not None and [*inspect.signature(_plain_all_reduce).parameters] == parameters:
        for cell in decorated.__closure__ or ():
            if cell.cell_contents is _plain_all_reduce:
                cell.cell_contents = all_reduce


lamport_rs_autoload.register()  # For programs that switch torch's entry points off, and import this module.
