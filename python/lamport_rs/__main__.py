"""The command line: `lamport-rs info`, `demo` and `bench`; `python -m lamport_rs` is the same."""

from __future__ import annotations

import argparse
import sys

from torch.multiprocessing.spawn import ProcessException

from lamport_rs import LamportError
from lamport_rs.command_line import demo, info
from lamport_rs.command_line.bench import options as bench_options
from lamport_rs.command_line.bench import run as bench


def main() -> int:
    """Run the command that the arguments name; return the exit status."""
    arguments = _parser().parse_args()
    try:
        if arguments.command == "info":
            return info.run()
        if arguments.command == "demo":
            return demo.run(arguments.ranks, arguments.backend)
        return bench.run(arguments)
    except (LamportError, ProcessException) as error:
        print(f"lamport-rs: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lamport-rs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="say what this installation can do here")
    demonstration = commands.add_parser(
        "demo", help="run the collectives between processes, check every result, and print a latency table"
    )
    demonstration.add_argument("--ranks", type=int, help="processes (default: one per GPU, or 2 on the CPU)")
    demonstration.add_argument("--backend", choices=["auto", "host", "cuda"], default="auto")
    benchmark = "compare every implementation found here, check every result, and record and draw the latencies"
    bench_options.add_arguments(commands.add_parser("bench", help=benchmark, description=benchmark))
    return parser


if __name__ == "__main__":
    sys.exit(main())
