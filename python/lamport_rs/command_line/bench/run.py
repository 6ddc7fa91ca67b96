"""The command: launches the ranks of each world size, and prints, records and draws what they found."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.multiprocessing.spawn import ProcessException

from lamport_rs import LamportError, __version__
from lamport_rs.command_line.bench import plot
from lamport_rs.command_line.bench.findings import Findings
from lamport_rs.command_line.bench.measure import run_rank
from lamport_rs.command_line.bench.options import Options, options_from
from lamport_rs.command_line.bench.record import Record, Row, default_folder, describe_run, read, write
from lamport_rs.command_line.bench.report import missing_text, tables
from lamport_rs.command_line.launch import NO_MULTICAST, launch
from lamport_rs.command_line.timing import GRAPH_OPERATIONS


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if every result was right and something was measured."""
    if arguments.draw is not None:
        record = read(arguments.draw)
        _print_tables(record.rows, "GPUs" if record.gpu else "processes")
        _draw(record, arguments.draw.parent)
        return 0
    options = options_from(arguments, default_folder())
    print(f"lamport_rs {__version__}: {' and '.join(map(str, options.world_sizes))} {options.ranks}", file=sys.stderr)
    findings = _measure(options)
    return _leave(findings, options)


def _measure(options: Options) -> Findings:
    together = Findings()
    for world_size in options.world_sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "findings.json")
            try:
                launch(run_rank, world_size, options.backend, options, path, time_limit=options.time_limit)
            except (LamportError, ProcessException):
                together.take(path)
                _print_tables(together.rows, options.ranks)  # Not recorded, but not kept back either.
                raise
            together.take(path)
    return together


def _leave(findings: Findings, options: Options) -> int:
    if findings.missing:
        print(missing_text(findings.missing), file=sys.stderr)
    if not findings.rows:
        print("lamport-rs bench: nothing could be measured", file=sys.stderr)
        return 1
    record = describe_run(findings.rows, describe_method(options), options.backend)
    _print_tables(record.rows, options.ranks)
    if options.folder is not None:
        print(f"\nrecord: {write(record, options.folder)}")
        if options.plot:
            _draw(record, options.folder)
    return 0


def describe_method(options: Options) -> str:
    """Return the line that a record says about how it was made."""
    if options.backend == "host":
        return f"calls back to back, median of {options.samples} alternating rounds, slowest rank"
    multicast = " ".join(f"{name}={os.environ.get(name, value)}" for name, value in NO_MULTICAST.items())
    return (
        f"CUDA graphs of {GRAPH_OPERATIONS} operations, or of graph_operations, enqueued behind a delay kernel and an "
        f"aligning operation, implementations in turns, median of {options.samples} replays, slowest rank; host times "
        f"by the clock, in inference mode; {multicast}"
    )


def _print_tables(rows: Sequence[Row], ranks: str) -> None:
    print(f"\n{tables(rows, ranks)}", flush=True)


def _draw(record: Record, folder: Path) -> None:
    try:
        paths = plot.draw(record, folder)
    except ImportError:
        print("no figures: matplotlib is not installed (pip install 'lamport-rs[bench]')")
        return
    for path in paths:
        print(f"figure: {path}")
