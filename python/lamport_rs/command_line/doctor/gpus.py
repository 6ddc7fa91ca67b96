"""GPUs, and the links between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from lamport_rs.command_line.bench.link import output_of
from lamport_rs.command_line.doctor.report import Finding, Gpu, Link


def gpus_here() -> list[Gpu]:
    """Return torch's GPUs."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        uuid = getattr(properties, "uuid", None)
        capability = f"{properties.major}.{properties.minor}"
        name = None if uuid is None else str(uuid)
        found.append(Gpu(index, properties.name, name, properties.total_memory, capability))
    return found


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None if there is none."""
    versions = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.splitlines()[0] if versions else None


def links_between(gpus: Sequence[Gpu]) -> list[Link]:
    """Return the links of all ordered pairs of the GPUs."""
    listing, topology = output_of("nvidia-smi", "-L") or "", output_of("nvidia-smi", "topo", "-m") or ""
    paths = paths_between(gpus, listing, topology)
    return [
        Link(
            source.index,
            target.index,
            torch.cuda.can_device_access_peer(source.index, target.index),
            paths.get((source.index, target.index)),
        )
        for source in gpus
        for target in gpus
        if source.index != target.index
    ]


def paths_between(gpus: Sequence[Gpu], listing: str, topology: str) -> dict[tuple[int, int], str]:
    """Return the paths between torch's GPUs, by what `nvidia-smi -L` and `nvidia-smi topo -m` print.

    torch's indices are not those of nvidia-smi where `CUDA_VISIBLE_DEVICES` hides some: the UUIDs say who is who.
    """
    numbers = {uuid: int(number) for number, uuid in re.findall(r"^GPU (\d+): .*\(UUID: GPU-(\S+)\)", listing, re.M)}
    cells = parse_topology(topology)
    by_index = {gpu.index: numbers[gpu.uuid] for gpu in gpus if gpu.uuid in numbers}
    return {
        (source, target): cells[row, column]
        for source, row in by_index.items()
        for target, column in by_index.items()
        if (row, column) in cells and source != target
    }


def parse_topology(text: str) -> dict[tuple[int, int], str]:
    """Return the cells of the matrix that `nvidia-smi topo -m` prints, by its GPU numbers."""
    rows = [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]
    header = next((row for row in rows if len(row) > 1 and row[0] == "GPU0" and row[1] != "X"), [])
    columns = [int(name[3:]) for name in header if re.fullmatch(r"GPU\d+", name)]
    return {
        (int(row[0][3:]), column): cell
        for row in rows
        if row and row is not header and re.fullmatch(r"GPU\d+", row[0])
        for column, cell in zip(columns, row[1:], strict=False)
    }


def judge_gpus(gpus: Sequence[Gpu], obstacle: str | None, device_files: bool) -> Finding:
    """Return whether the GPUs can be used. `device_files`: whether the system has any; `obstacle`: of the package."""
    if gpus and obstacle is None:
        names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
        few = "" if len(gpus) > 1 else "; a group takes two, and the host backend needs none"
        return Finding("gpus", "ok", f"{len(gpus)}: {names}{few}")
    if gpus or device_files:
        reason = obstacle or "torch sees none; its build may have no CUDA, or CUDA_VISIBLE_DEVICES hides them"
        remedy = (
            "install a torch built for CUDA and a driver that it supports, and give the container its GPUs (--gpus)"
        )
        return Finding("gpus", "error", f"there are GPUs, and they cannot be used: {reason}", remedy)
    return Finding("gpus", "ok", "none; the host backend works without")


def judge_links(links: Sequence[Link]) -> list[Finding]:
    """Return whether the GPUs reach each other, and how."""
    if not links:
        return []
    findings = []
    if without := [link for link in links if not link.peer_access]:
        text = f"no peer access from GPU {_pairs(without)}"
        remedy = "take GPUs that reach each other, or look for IOMMU and ACS settings that forbid it"
        findings.append(Finding("peer_access", "warning", text, remedy))
    else:
        findings.append(Finding("peer_access", "ok", "between all GPUs"))
    if all(link.path is None for link in links):
        remedy = "see that nvidia-smi topo -m works here"
        findings.append(Finding("nvlink", "warning", "what joins the GPUs is not known", remedy))
    elif slow := [link for link in links if not (link.path or "").startswith("NV")]:
        text = f"no NVLink from GPU {_pairs(slow)}: several times the latency over PCIe"
        findings.append(Finding("nvlink", "warning", text, "take GPUs that NVLink joins: nvidia-smi topo -m"))
    else:
        findings.append(Finding("nvlink", "ok", ", ".join(sorted({link.path or "" for link in links}))))
    return findings


def has_device_files(folder: Path = Path("/dev")) -> bool:
    """Whether the system has a GPU of NVIDIA's, whoever may use it."""
    return any(re.fullmatch(r"nvidia\d+", each.name) for each in folder.glob("nvidia*"))


def _pairs(links: Sequence[Link]) -> str:
    return ", ".join(f"{link.source} to {link.target}" for link in links)
