"""Recorded runs: what every claim of the documentation rests on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lamport_rs import LamportError
from lamport_rs.command_line.bench.arguments import BACK_TO_BACK
from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.link import link_bandwidth, output_of
from lamport_rs.command_line.bench.nccl import NEWEST, nccl_version
from lamport_rs.command_line.bench.peers import releases
from lamport_rs.command_line.timing import Latency

_CHECKOUT_RESULTS = Path("benchmarks", "results")
_DIGITS = 3


@dataclass(frozen=True)
class Row:
    """One measurement: microseconds per operation."""

    op: str
    impl: str
    world_size: int
    dtype: str
    median_us: float
    min_us: float
    max_us: float
    bytes: int | None = None
    tokens: int | None = None
    hidden: int | str | None = None
    layers: int | None = None
    """Of the model, where the operation is a step of it."""
    timing: str = BACK_TO_BACK
    """One of `TIMINGS`. The first records do not say it."""
    graph_operations: int | None = None
    """As in `Latency`, and so below."""
    host_included: bool | None = None

    @classmethod
    def of(cls, case: Case, impl: str, world_size: int, latency: Latency, timing: str = BACK_TO_BACK) -> Row:
        """Return the row of an implementation's latency."""
        median, least, most = (round(each, _DIGITS) for each in (latency.median_us, latency.min_us, latency.max_us))
        return cls(
            impl=impl,
            world_size=world_size,
            median_us=median,
            min_us=least,
            max_us=most,
            timing=timing,
            graph_operations=latency.graph_operations,
            host_included=latency.host_included,
            **case.keys(),
        )

    @property
    def case(self) -> Case:
        """What was measured."""
        return Case(self.op, getattr(torch, self.dtype), self.bytes, self.tokens, self.hidden, self.layers)


@dataclass(frozen=True)
class Record:
    """A run, as its file has it; docs/measuring.md describes the keys."""

    schema: int
    date: str
    commit: str | None
    gpu: str | None
    gpus: int
    driver: str | None
    torch: str
    nccl: str | None
    cpu: str
    python: str
    method: str
    rows: tuple[Row, ...]
    link_gb_per_s: float | None = None
    """What NVLink moves out of one GPU, by its label."""
    interrupted: bool = False
    """Whether the run was ended before all was measured."""
    newest_nccl: str | None = None
    """The newest release of NCCL that this version of the benchmark knows, whichever is measured."""
    peers: dict[str, str] | None = None
    """The releases of SGLang and FlashInfer whose kernels were there."""

    @property
    def machine(self) -> str:
        """The GPU's name, or the processor's."""
        return self.gpu or self.cpu

    @property
    def stem(self) -> str:
        """The names of the run's files, up to the suffix."""
        count = self.gpus or max(row.world_size for row in self.rows)
        machine = (self.gpu or "cpu").lower().replace("nvidia ", "").replace(" ", "-")
        # A whole run of the same day must not be lost.
        return f"{self.date[:10]}-{machine}-x{count}{'-interrupted' if self.interrupted else ''}"


def describe_run(rows: Sequence[Row], method: str, backend: str, interrupted: bool = False) -> Record:
    """Return the record of a run made here, now.

    `LAMPORT_RS_COMMIT` names the commit where the run is not made in a checkout.
    """
    on_gpus = backend == "cuda"
    return Record(
        schema=1,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=os.environ.get("LAMPORT_RS_COMMIT") or _commit(),
        gpu=torch.cuda.get_device_name(0) if on_gpus else None,
        gpus=max(row.world_size for row in rows) if on_gpus else 0,
        driver=output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        torch=torch.__version__,
        nccl=nccl_version() if on_gpus else None,
        cpu=_cpu(),
        python=platform.python_version(),
        method=method,
        rows=tuple(rows),
        link_gb_per_s=link_bandwidth() if on_gpus else None,
        interrupted=interrupted,
        newest_nccl=NEWEST if on_gpus else None,
        peers=releases() or None if on_gpus else None,
    )


def default_folder() -> Path:
    """Return `benchmarks/results` in a checkout, the current folder elsewhere."""
    return _CHECKOUT_RESULTS if _CHECKOUT_RESULTS.is_dir() else Path()


def check_folder(folder: Path) -> None:
    """Make the folder if there is none, and raise `LamportError` unless files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LamportError(
            f"no record can be left in {folder}: {error.strerror}; name another folder with --record, or pass "
            "--no-record"
        ) from error


def write(record: Record, folder: Path) -> Path:
    """Write `<date>-<machine>-x<count>.json` and return its path. A second run on the same day replaces the first.

    That of a run that was interrupted ends in `-interrupted.json`.
    """
    run: dict[str, Any] = asdict(record)
    run["rows"] = [{key: value for key, value in row.items() if value is not None} for row in run.pop("rows")]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.stem}.json"
    path.write_text(json.dumps(run, indent=1) + "\n")
    return path


def read(path: Path) -> Record:
    """Return the record that a file holds; keys that it does not know, as a note by hand, are passed over."""
    try:
        run = json.loads(path.read_text())
        known = {each.name: run[each.name] for each in fields(Record) if each.name in run}
        return Record(**{**known, "rows": tuple(Row(**row) for row in run["rows"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LamportError(f"{path} holds no record of a run: {error}") from error


def _commit() -> str | None:
    # Elsewhere the commit would be that of whatever repository the current folder is in.
    return output_of("git", "rev-parse", "HEAD") if _CHECKOUT_RESULTS.is_dir() else None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
