"""The command: launches the ranks of each world size, and prints, records and draws what they found."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lamport_rs import LamportError, __version__
from lamport_rs.command_line.bench import peers, plot
from lamport_rs.command_line.bench.between import NORM_HIDDEN, NORM_ROWS, PRODUCT_HIDDEN, PRODUCT_ROWS
from lamport_rs.command_line.bench.findings import Findings
from lamport_rs.command_line.bench.measure import run_rank
from lamport_rs.command_line.bench.options import Options, options_from
from lamport_rs.command_line.bench.record import (
    Record,
    Row,
    check_folder,
    default_folder,
    describe_run,
    read,
    write,
)
from lamport_rs.command_line.bench.report import missing_text, tables
from lamport_rs.command_line.cores import cores_here
from lamport_rs.command_line.exit_status import FAILURE, SUCCESS
from lamport_rs.command_line.launch import NO_MULTICAST, launch
from lamport_rs.command_line.table import output_width
from lamport_rs.command_line.timing import GRAPH_OPERATIONS


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if every result was right and something was measured.

    What ends it from outside (Ctrl-C, SIGTERM, a reader of the output that goes) is raised again after what has been
    measured was recorded, and marked as interrupted.
    """
    if arguments.draw is not None:
        return _draw_again(arguments)
    if (folder := arguments.peers or peers.folder_in_use()) is not None:
        peers.use_folder(folder)
    options = options_from(arguments, default_folder())
    if options.folder is not None:
        check_folder(options.folder)
    print(f"lamport_rs {__version__}: {' and '.join(map(str, options.world_sizes))} {options.ranks}", file=sys.stderr)
    if (shortage := cores_here().shortage(options.world_sizes[-1])) is not None:
        print(f"warning: {shortage}", file=sys.stderr)
    findings = Findings()
    try:
        _measure(options, findings)
    except (KeyboardInterrupt, SystemExit, BrokenPipeError):
        _leave(findings, options, interrupted=True)
        raise
    return _leave(findings, options)


def _draw_again(arguments: argparse.Namespace) -> int:
    record = read(arguments.draw)
    folder = arguments.record or arguments.draw.parent
    draws = not (arguments.no_plot or arguments.no_record)
    if draws:
        check_folder(folder)
    if record.interrupted:
        print("This run was interrupted.")
    _print_tables(record.rows, "GPUs" if record.gpu else "processes")
    if draws:
        _draw(record, folder)
    return SUCCESS


def _measure(options: Options, together: Findings) -> None:
    """Add what the ranks find; what they have left when they are ended, too."""
    for world_size in options.world_sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "findings.json")
            try:
                launch(run_rank, world_size, options.backend, options, path, time_limit=options.time_limit)
            except LamportError:
                together.take(path)
                _print_tables(together.rows, options.ranks)  # Not recorded, but not kept back either.
                raise
            except BaseException:
                together.take(path)
                raise
            together.take(path)


def _leave(findings: Findings, options: Options, interrupted: bool = False) -> int:
    if not findings.rows:
        reason = "interrupted before anything was" if interrupted else "nothing could be"
        _print_missing(findings)
        print(f"lamport-rs bench: {reason} measured", file=sys.stderr)
        return FAILURE
    record = describe_run(findings.rows, describe_method(options), options.backend, interrupted)
    # Before anything is printed: the reader may have gone.
    path = None if options.folder is None else write(record, options.folder)
    try:
        _print_missing(findings)
        _print_tables(record.rows, options.ranks)
        if path is not None:
            print(f"\nrecord{', interrupted' if interrupted else ''}: {path}", flush=True)
    finally:
        if path is not None and options.plot:
            _draw(record, path.parent)
    return SUCCESS


def describe_method(options: Options) -> str:
    """Return the line that a record says about how it was made."""
    if options.backend == "host":
        return f"calls back to back, median of {options.samples} alternating rounds, slowest rank"
    multicast = " ".join(f"{name}={os.environ.get(name, value)}" for name, value in NO_MULTICAST.items())
    return (
        f"CUDA graphs of {GRAPH_OPERATIONS} operations (decode_step: of one step), or of graph_operations, enqueued "
        f"behind a delay kernel and an aligning operation, implementations in turns, median of {options.samples} "
        "replays, slowest rank; kernel_between: an elementwise kernel reads each result; norm_between: torch's RMSNorm "
        f"of {NORM_ROWS} x {NORM_HIDDEN} follows each; product_between: a product of {PRODUCT_ROWS} x {PRODUCT_HIDDEN} "
        f"by {PRODUCT_HIDDEN} x {PRODUCT_HIDDEN}; the kernel's own time, measured alone in the same turns, taken off; "
        "host times "
        f"by the clock, in inference mode; {multicast}"
    )


def _print_missing(findings: Findings) -> None:
    if findings.missing:
        print(missing_text(findings.missing, output_width()), file=sys.stderr)


def _print_tables(rows: Sequence[Row], ranks: str) -> None:
    if rows:
        print(f"\n{tables(rows, ranks, output_width())}", flush=True)


def _draw(record: Record, folder: Path) -> None:
    try:
        paths = plot.draw(record, folder)
    except ImportError:
        print("no figures: matplotlib is not installed (pip install matplotlib)")
        return
    if not paths:
        print("no figures: they take several sizes of a collective, or a decode step")
    for path in paths:
        print(f"figure: {path}")
