"""The command line: `lamport-rs info`, `demo` and `bench`; `python -m lamport_rs` is the same."""

from __future__ import annotations

import argparse
import sys

from torch.multiprocessing.spawn import ProcessException

from lamport_rs import LamportError, LamportWorkspace
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
    demonstration.add_argument(
        "--ranks", type=_group_size, help="processes, 2 to 16 (default: one per GPU, or 2 on the CPU)"
    )
    demonstration.add_argument("--backend", choices=["auto", "host", "cuda"], default="auto")
    benchmark = "compare every implementation found here, check every result, and record and draw the latencies"
    bench_options.add_arguments(commands.add_parser("bench", help=benchmark, description=benchmark))
    return parser


def _group_size(text: str) -> int:
    """Return the number, if the core takes groups of so many ranks."""
    try:
        world_size = int(text)
        LamportWorkspace.compute_comm_size_for_all_reduce(1, world_size)
    except (LamportError, OverflowError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} ranks cannot run: {error}") from error
    return world_size


if __name__ == "__main__":
    sys.exit(main())
