"""What the operating system and a container allow."""

from __future__ import annotations

import fcntl
import os
import resource
from pathlib import Path

from lamport_rs import _core
from lamport_rs.command_line.cores import Cores
from lamport_rs.command_line.doctor.report import Finding

_FEW_FILES = 1024
_TABLE_TOKENS = 16384
"""For so many `get_allreduce_workspace` makes a workspace by default."""
_SLOTS = 3
_SMALL_SHM = 64 << 20
"""Bytes of /dev/shm that Docker gives by default."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def limits() -> dict[str, int | None]:
    """Return the limits of this process (`/proc/self/limits`); None for no limit."""
    return {
        "open_files": _limit(resource.RLIMIT_NOFILE),
        "locked_memory_bytes": _limit(resource.RLIMIT_MEMLOCK),
    }


def judge_limits(found: dict[str, int | None], on_gpus: bool) -> list[Finding]:
    """Return what the limits mean."""
    files, locked = found["open_files"], found["locked_memory_bytes"]
    findings = []
    if files is not None and files < _FEW_FILES:
        remedy = f"raise it: ulimit -n {_FEW_FILES}, or docker run --ulimit nofile={_FEW_FILES}"
        text = f"a process may have {files} open files; torch and a group of ranks may want more"
        findings.append(Finding("open_files", "warning", text, remedy))
    else:
        findings.append(Finding("open_files", "ok", f"{_or_unlimited(files)} per process"))
    if on_gpus and locked is not None:
        text = f"locked memory is limited to {format_size(locked)}: NCCL may not be able to use a network card"
        remedy = "raise it, if NCCL is used between machines: ulimit -l unlimited, or docker run --ulimit memlock=-1"
        findings.append(Finding("locked_memory", "warning", text, remedy))
    else:
        findings.append(Finding("locked_memory", "ok", "unlimited" if locked is None else format_size(locked)))
    return findings


def shared_memory_obstacle() -> str | None:
    """Return what keeps processes from sharing memory as the host backend does it; None if nothing does."""
    try:
        descriptor = os.memfd_create("lamport-rs-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, 1 << 16)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                return "seals of a memfd do not hold"
            # So peers open it.
            os.close(os.open(f"/proc/{os.getpid()}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC))
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
    return None


def memory(ranks: int, on_gpus: bool) -> dict[str, int | None]:
    """Return bytes of memory: there, allowed, and wanted by `ranks` workspaces of the default size."""
    limit = _core.memory_limit()
    shm = _file_system("/dev/shm")
    wanted = _SLOTS * _core.minimax_comm_size(_TABLE_TOKENS, ranks, True)
    return {
        "available_bytes": _available(Path("/proc/meminfo")),
        "container_limit_bytes": limit[0] if limit else None,
        "container_used_bytes": limit[1] if limit else None,
        "dev_shm_bytes": shm[0] if shm else None,
        "dev_shm_free_bytes": shm[1] if shm else None,
        "workspaces_bytes": 0 if on_gpus else ranks * wanted,
    }


def judge_memory(found: dict[str, int | None], on_gpus: bool) -> list[Finding]:
    """Return what these figures mean."""
    limit, used, available = (found[f"{name}_bytes"] for name in ("container_limit", "container_used", "available"))
    wanted = found["workspaces_bytes"] or 0
    left = min([each for each in (available, None if limit is None else limit - (used or 0)) if each is not None],
               default=None)  # fmt: skip
    allowed = "no limit of a container" if limit is None else f"a container's limit of {format_size(limit)}"
    if left is not None and left < wanted:
        text = (
            f"{format_size(left)} are left ({allowed}), and default workspaces of all ranks take {format_size(wanted)}"
        )
        remedy = "raise the container's limit (docker run --memory), stop what else runs, or pass a smaller comm_size"
        findings = [Finding("memory", "warning", text, remedy)]
    else:
        findings = [Finding("memory", "ok", f"{'unknown' if left is None else format_size(left)} left, {allowed}")]
    total, free = found["dev_shm_bytes"], found["dev_shm_free_bytes"]
    if on_gpus and (total is None or free is None or total <= _SMALL_SHM or free < _SMALL_SHM):
        size = "is missing" if free is None else f"has {format_size(free)} left"
        text = f"/dev/shm {size}: lamport_rs does not use it, but NCCL does"
        findings.append(Finding("dev_shm", "warning", text, "docker run --shm-size=1g, or --ipc=host"))
    else:
        text = "missing; only NCCL would use it" if free is None else f"{format_size(free)} left"
        findings.append(Finding("dev_shm", "ok", text))
    return findings


def judge_cores(cores: Cores, ranks: int) -> Finding:
    """Return whether every rank can have a core."""
    if (shortage := cores.shortage(ranks)) is not None:
        text, _, remedy = shortage.rpartition("; ")
        return Finding("cores", "warning", text, remedy)
    quota = "" if cores.quota is None else f", a quota of {cores.quota:g}"
    return Finding("cores", "ok", f"{cores.affinity}{quota}, {cores.busy:.1f} of them busy, for {ranks} ranks")


def format_size(size: int) -> str:
    """Return `"1.5 GiB"` for 1610612736 bytes."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _or_unlimited(value: int | None) -> str:
    return "unlimited" if value is None else str(value)


def _available(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _file_system(folder: str) -> tuple[int, int] | None:
    """Bytes of a file system, and those that are free."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
