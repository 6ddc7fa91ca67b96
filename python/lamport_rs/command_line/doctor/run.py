"""The command: examines, prints, and says by the exit status whether everything works."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lamport_rs import LamportError, __version__, _core
from lamport_rs.command_line.cores import cores_here
from lamport_rs.command_line.doctor import machine, plugins
from lamport_rs.command_line.doctor.report import Finding, Pair, Report, Transfer, held_processes
from lamport_rs.command_line.exit_status import FAILURE, SUCCESS
from lamport_rs.command_line.table import format_table, output_width, wrap

if TYPE_CHECKING:
    from lamport_rs.backends import Backend

SCHEMA = 1
_REINSTALL = "install torch 2.6 or later again, in this environment: pip install 'torch>=2.6'"


def run(ranks: int | None, backend: Backend, as_json: bool) -> int:
    """Examine this installation and machine for 1 to 16 `ranks`, None for the default; return 1 if one is wrong."""
    cores = cores_here()  # Before torch is imported, which keeps one busy.
    report = examine(ranks, backend, cores)
    print(json.dumps(as_dictionary(report), indent=1) if as_json else as_text(report, output_width()))
    status = SUCCESS if report.healthy else FAILURE
    if any(process.is_alive() for process in held_processes):
        # Python would wait for them at its end.
        sys.stdout.flush()
        os._exit(status)
    return status


def as_dictionary(report: Report) -> dict[str, Any]:
    """Return what JSON has."""
    return {"schema": SCHEMA, "healthy": report.healthy, **asdict(report)}


def as_text(report: Report, width: int) -> str:
    """Return what people read, in lines of at most `width`."""
    place = "GPUs" if report.backend == "cuda" else "processes over shared memory"
    ranks = "" if report.ranks is None else f": {report.ranks} {place}"
    lines = [wrap(f"lamport_rs {__version__}{ranks}", width), ""]
    for each in report.findings:
        lines.append(wrap(f"{each.status:8} {each.check}: {each.text}", width, " " * 9))
        if each.remedy is not None:
            lines.append(" " * 9 + wrap(f"-> {each.remedy}", width - 9, " " * 12))
    if report.pairs:
        body = [[f"{pair.ranks[0]} and {pair.ranks[1]}", *_cells(pair)] for pair in report.pairs]
        lines += ["", format_table(["ranks", "latency, us", "GB/s each way"], body, width)]
    count = {status: sum(each.status == status for each in report.findings) for status in ("error", "warning")}
    verdict = "everything works" if report.healthy else "something is wrong"
    verdict += f"; errors: {count['error']}, warnings: {count['warning']}"
    return "\n".join([*lines, "", wrap(verdict, width)])


def examine(ranks: int | None, backend: Backend, cores: Any) -> Report:
    """Return all that was found."""
    report = Report()
    report.versions = {"lamport_rs": __version__, "python": platform.python_version(), "torch": None,
                       "torch_cuda": None, "driver": None, "linux": platform.release()}  # fmt: skip
    try:
        import torch

        # torch may be there, and lack what the package asks of it.
        importlib.import_module("lamport_rs.torch_operators")
    except (ImportError, OSError) as error:
        report.findings.append(Finding("versions", "error", f"torch cannot be used: {error}", _REINSTALL))
        _examine_machine(report, ranks or 2, cores, on_gpus=False)
        return report
    _examine_gpus(report, torch)
    try:
        on_gpus, world_size = _choose(report, ranks, backend)
    except LamportError as error:
        report.backend = "cuda"
        report.findings.append(Finding("ranks", "error", str(error), "pass --backend host, or other --ranks"))
        _examine_machine(report, ranks or 2, cores, on_gpus=True)
        return report
    report.backend, report.ranks = "cuda" if on_gpus else "host", world_size
    _examine_machine(report, world_size, cores, on_gpus)
    _examine_pairs(report, world_size, on_gpus)
    return report


def _examine_gpus(report: Report, torch: Any) -> None:
    from lamport_rs.command_line.doctor import gpus

    report.versions |= {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "driver": gpus.driver_version()}
    cuda = f"CUDA runtime {torch.version.cuda or 'none'}, NVIDIA driver {report.versions['driver'] or 'none'}"
    text = f"Python {report.versions['python']}, torch {torch.__version__}, {cuda}"
    report.findings.append(Finding("versions", "ok", text))
    report.gpus = gpus.gpus_here()
    report.findings.append(gpus.judge_gpus(report.gpus, _core.cuda_obstacle(), gpus.has_device_files()))
    report.links = gpus.links_between(report.gpus) if len(report.gpus) > 1 else []
    report.findings += gpus.judge_links(report.links)


def _choose(report: Report, ranks: int | None, backend: Backend) -> tuple[bool, int]:
    """Whether the ranks are on GPUs, and how many there are."""
    usable = len(report.gpus) if _core.cuda_obstacle() is None else 0
    if backend == "host" or (backend == "auto" and usable < 2):
        return False, ranks or 2
    world_size = ranks or min(usable, _core.MAX_WORLD_SIZE)
    shared = os.environ.get("LAMPORT_RS_SHARE_GPU") == "1" and usable > 0
    if world_size < 2 or (world_size > usable and not shared):
        raise LamportError(f"a rank takes a GPU of its own, a group takes two, and {usable} can be used here")
    return True, world_size


def _examine_machine(report: Report, ranks: int, cores: Any, on_gpus: bool) -> None:
    if (obstacle := machine.shared_memory_obstacle()) is None:
        report.findings.append(Finding("shared_memory", "ok", "memfd_create and its seals work"))
    else:
        remedy = "the host backend needs memfd_create, seals and /proc/<pid>/fd: allow them in the container's seccomp "
        remedy += "profile, and mount /proc"
        report.findings.append(Finding("shared_memory", "error", f"memfd_create or its seals fail: {obstacle}", remedy))
    report.memory = {"memfd_create": obstacle is None, **machine.memory(ranks, on_gpus)}
    report.limits = machine.limits()
    report.cores = {"affinity": cores.affinity, "quota": cores.quota, "busy": round(cores.busy, 2)}
    report.findings += machine.judge_limits(report.limits, on_gpus)
    report.findings += machine.judge_memory(report.memory, on_gpus)
    report.findings.append(machine.judge_cores(cores, ranks))
    for plugin in plugins.PLUGINS:
        state = plugins.state_of(plugin)
        report.plugins[plugin.distribution] = plugins.as_dictionary(state)
        report.findings.append(plugins.judge(plugin, state))


def _examine_pairs(report: Report, ranks: int, on_gpus: bool) -> None:
    from lamport_rs.command_line.doctor import pairs

    count = len(report.gpus)
    place_of: Callable[[int], int | None] = (lambda rank: rank % count) if on_gpus else (lambda _rank: None)
    found: Iterable[tuple[Pair, list[Transfer]]] = pairs.examine(ranks, place_of)
    for done, (pair, transfers) in enumerate(found, 1):
        if sys.stderr.isatty():
            print(f"\r\x1b[2Kpair {done} of {ranks * (ranks - 1) // 2}", end="", file=sys.stderr, flush=True)
        report.pairs.append(pair)
        report.transfers += transfers
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    report.findings += judge_transfers(report.transfers, report.pairs, on_gpus)


def judge_transfers(transfers: Sequence[Transfer], pairs: Sequence[Pair], on_gpus: bool) -> list[Finding]:
    """Return a finding for each ordered pair that does not work, and for each pair that only then fails."""
    remedy = (
        "see gpus and peer_access above; give the container all GPUs and one IPC namespace (docker run --ipc=host), "
        "and look for IOMMU and ACS settings that keep stores from arriving"
        if on_gpus
        else "ranks must be of one user and see each other in /proc (one PID namespace, no hidepid); see memory above"
    )
    findings = []
    for each in transfers:
        if not each.works:
            verb = "was not seen to arrive" if each.works is None else "does not arrive"
            text = f"a word from rank {each.source} to rank {each.target} {verb}: {each.reason}"
            findings.append(Finding("transfers", "error", text, remedy))
    broken = {tuple(sorted((each.source, each.target))) for each in transfers if not each.works}
    for pair in pairs:
        if pair.reason is not None and pair.ranks not in broken:
            text = f"words of ranks {pair.ranks[0]} and {pair.ranks[1]} arrive, but operations fail: {pair.reason}"
            findings.append(Finding("operations", "error", text, remedy))
    whole = (
        f"a word arrives between all {len(transfers)} ordered pairs of ranks" if transfers else "a single rank has none"
    )
    return findings or [Finding("transfers", "ok", whole)]


def _cells(pair: Pair) -> list[str]:
    return [
        "-" if pair.latency_us is None else f"{pair.latency_us:.2f}",
        "-" if pair.bandwidth_gb_per_s is None else f"{pair.bandwidth_gb_per_s:.2f}",
    ]
