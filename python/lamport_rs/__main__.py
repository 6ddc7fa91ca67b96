"""The command line: `lamport-rs doctor`, `demo` and `bench`; `python -m lamport_rs` is the same."""

from __future__ import annotations

import argparse
import os
import sys

from lamport_rs import LamportError, __version__, _core
from lamport_rs.command_line.bench.arguments import add_arguments as add_bench_arguments
from lamport_rs.command_line.exit_status import BROKEN_PIPE, FAILURE, INTERRUPTED


def main() -> int:
    """Run the command that the arguments name; return the exit status."""
    _open_closed_outputs()
    try:
        try:
            return _run(_parser().parse_args())
        finally:
            # Here and not when the interpreter ends, where a broken pipe would be told.
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left to write goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return BROKEN_PIPE
    except (LamportError, OSError) as error:
        print(f"lamport-rs: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("lamport-rs: interrupted", file=sys.stderr)
        return INTERRUPTED


def _open_closed_outputs() -> None:
    """Where the shell has closed an output (`>&-`), let what is written go nowhere, also that of processes to come."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w"))  # noqa: SIM115  (for as long as the process is)


def _run(arguments: argparse.Namespace) -> int:
    # Each brings torch, which takes seconds: not before the arguments are known to be right.
    if arguments.command == "doctor":
        from lamport_rs.command_line.doctor import run as doctor

        return doctor.run(arguments.ranks, arguments.backend, as_json=arguments.json)
    if arguments.command == "demo":
        from lamport_rs.command_line import demo

        return demo.run(arguments.ranks, arguments.backend)
    from lamport_rs.command_line.bench import run as bench

    return bench.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lamport-rs", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lamport-rs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    examination = "say what works here, what does not, and what to do about it; exit status 1 if something is wrong"
    doctor = commands.add_parser("doctor", help=examination, description=examination)
    _add_ranks(doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON, as docs/appendix/doctor_json.md describes it")
    demonstration = "run the collectives between processes, check every result, and print a latency table"
    _add_ranks(commands.add_parser("demo", help=demonstration, description=demonstration))
    benchmark = "compare every implementation found here, check every result, and record and draw the latencies"
    add_bench_arguments(commands.add_parser("bench", help=benchmark, description=benchmark))
    return parser


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=_group_size, metavar="N", help="1 to 16 processes (default: one per GPU, or 2 on the CPU)"
    )
    parser.add_argument(
        "--backend", choices=["auto", "host", "cuda"], default="auto", help="auto: GPUs if there are several"
    )


def _group_size(text: str) -> int:
    """Return the number, if the core takes groups of so many ranks."""
    try:
        world_size = int(text)
        _core.all_reduce_comm_size(1, world_size)
    except (LamportError, OverflowError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} ranks cannot run: {error}") from error
    return world_size


if __name__ == "__main__":
    sys.exit(main())
