"""The command line: `python -m lamport_rs info` and `python -m lamport_rs demo`."""

from __future__ import annotations

import argparse
import sys

from lamport_rs import LamportError
from lamport_rs.command_line import demo, info


def main() -> int:
    """Run the command that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lamport_rs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="say what this installation can do here")
    demonstration = commands.add_parser(
        "demo", help="run the collectives between processes, check every result, and print a latency table"
    )
    demonstration.add_argument("--ranks", type=int, help="processes (default: one per GPU, or 2 on the CPU)")
    demonstration.add_argument("--backend", choices=["auto", "host", "cuda"], default="auto")
    arguments = parser.parse_args()
    if arguments.command == "info":
        return info.run()
    try:
        return demo.run(arguments.ranks, arguments.backend)
    except LamportError as error:
        print(f"lamport_rs: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
