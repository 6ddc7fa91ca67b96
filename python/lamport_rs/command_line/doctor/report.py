"""What was found, as JSON has it; docs/appendix/doctor_json.md describes the keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    An error keeps the package from working; a warning makes it slow, or may hinder what runs beside it.
    """

    check: str
    status: Status
    text: str
    remedy: str | None = None
    """What to do about it; None if it is ok."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, by torch's index."""

    index: int
    name: str
    uuid: str | None
    memory_bytes: int
    compute_capability: str


@dataclass(frozen=True)
class Link:
    """From one GPU to another."""

    source: int
    target: int
    peer_access: bool
    path: str | None
    """As `nvidia-smi topo -m` has it: `"NV18"` for 18 NVLinks, `"PIX"` or `"SYS"` for ways over PCIe. None: unknown."""


@dataclass(frozen=True)
class Transfer:
    """Whether a word that one rank stores arrives at another; None if that was not tried."""

    source: int
    target: int
    works: bool | None
    reason: str | None = None


@dataclass(frozen=True)
class Pair:
    """A group of two ranks, measured; None where it could not be."""

    ranks: tuple[int, int]
    latency_us: float | None = None
    """Microseconds for an all-reduce of 16 bytes."""
    bandwidth_gb_per_s: float | None = None
    """Of what each pushes to the other at the same time, in an all-reduce of 4 MiB."""
    reason: str | None = None


@dataclass
class Report:
    """All of it."""

    backend: str | None = None
    ranks: int | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    gpus: list[Gpu] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    limits: dict[str, int | None] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    cores: dict[str, float | None] = field(default_factory=dict)
    plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is an error."""
        return all(each.status != "error" for each in self.findings)


held_processes: list[BaseProcess] = []
"""Processes of this one's that were killed and are not gone, because the driver holds them."""
