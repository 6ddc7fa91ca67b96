"""The sums of a process group through workspaces: one a device, made by the first sum there."""

from __future__ import annotations

import threading

import torch
import torch.distributed as dist

from lamport_rs._core import LamportError
from lamport_rs.observation import logger
from lamport_rs.operations.sums import run_all_reduce_in_place
from lamport_rs.workspace import LamportWorkspace, bind_to_thread


class _Thread(threading.local):
    """Has what stands for the calling thread alone. `get_ident` gives the number of one that has ended again."""

    def __init__(self) -> None:
        self.token = object()


_this_thread = _Thread()


class DeviceSums:
    """The sums of one group on one device."""

    def __init__(self, workspace: LamportWorkspace) -> None:
        self._workspace = workspace
        self._thread = _this_thread.token
        # A signal's handler may sum while its thread does, which the workspace then refuses: so no plain lock.
        self._lock = threading.RLock()

    def add(self, tensor: torch.Tensor) -> None:
        """Sum `tensor` over the ranks, in place."""
        with self._lock:
            # The group answers for the order, not the thread: torch's rule is that all ranks call in the same one.
            thread = _this_thread.token
            if self._thread is not thread:
                bind_to_thread(self._workspace)
                self._thread = thread
            run_all_reduce_in_place(tensor, self._workspace)

    def close(self) -> None:
        """Give the workspace up."""
        self._workspace.cleanup()


class GroupSums:
    """The sums of one group. A workspace is made by the first sum on a device, as torch makes NCCL's communicators."""

    def __init__(self, seconds: float, only: str | None = None) -> None:
        """Let operations wait `seconds` for a peer; serve the devices that the group has the backend `only` for."""
        self._seconds, self._only = seconds, only
        self._devices: dict[int, DeviceSums | None] = {}
        self._lock = threading.RLock()

    def find(self, index: int) -> DeviceSums | None:
        """Return the sums on the device with this index, -1 for the CPU, if they have been made."""
        return self._devices.get(index)

    def add(self, group: dist.ProcessGroup, tensor: torch.Tensor) -> bool:
        """Sum `tensor` over the ranks, in place; or return False if that is for the group's other backend to do.

        It is dense, has a dtype that the package sums, and is to be summed.
        """
        if tensor.numel() == 0:
            return False
        index = tensor.get_device()  # -1 for the CPU.
        try:
            sums = self._devices[index]
        except KeyError:
            sums = self._prepare(group, tensor, index)
        if sums is None:
            return False
        sums.add(tensor)
        return True

    def close(self) -> None:
        """Give all workspaces up."""
        for sums in self._devices.values():
            if sums is not None:
                sums.close()

    def _prepare(self, group: dist.ProcessGroup, tensor: torch.Tensor, index: int) -> DeviceSums | None:
        """Make the workspace. The ranks agree: all get one, or all get None."""
        device = tensor.device
        if device.type not in ("cpu", "cuda"):
            return None
        with self._lock:
            if index in self._devices:
                return self._devices[index]
            sums = None
            if group.size() > 1 and self._serves(group, device):
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    logger.warning(
                        "group %s: its first sum on %s is captured in a CUDA graph, where no workspace can be made, so "
                        "NCCL does it; run one before the capture",
                        group.group_name,
                        device,
                    )
                    return None
                try:
                    # On all ranks, or the same error on all.
                    sums = DeviceSums(LamportWorkspace.for_group(group, device=device, timeout=self._seconds))
                except LamportError as error:
                    if group.rank() == 0:
                        logger.warning(
                            "group %s: NCCL or gloo does all sums on %s: %s", group.group_name, device, error
                        )
            self._devices[index] = sums
            return sums

    def _serves(self, group: dist.ProcessGroup, device: torch.device) -> bool:
        if self._only is None:
            return True
        return f"{device.type}:{self._only}" in dist.get_backend_config(group).split(",")
