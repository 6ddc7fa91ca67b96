"""Write the types of the core's collectives into `_core.pyi`, out of the installed core's descriptions.

    python scripts/core_stub.py [--check]

With `--check` nothing is written, and it is an error if something would be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lamport_rs import _core

STUB = Path(__file__).parents[1] / "python" / "lamport_rs" / "_core.pyi"
BEGIN = "# The collectives: written by scripts/core_stub.py, and nothing behind this line by hand.\n"
TYPES = {
    "Tensor": "torch.Tensor",
    "Tensor?": "torch.Tensor | None",
    "str": "str",
    "float": "float",
    "int": "int",
    "bool": "bool",
}


def function(name: str, arguments: list[tuple[str, str, str | None]], outputs: list[str]) -> str:
    """Return the function's stub: the operator's arguments, of which all are passed, and its outputs."""
    parameters = [
        f"{argument}: {'Workspace | torch.Tensor' if argument == 'workspace' else TYPES[kind]}"
        for kind, argument, _ in arguments
    ]
    parameters += [f"{output}: torch.Tensor" for output in outputs]
    return f"def {name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + ") -> None: ...\n"


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    only_check = parser.parse_args().check
    found = STUB.read_text()
    by_hand, _, _ = found.partition(BEGIN)
    expected = by_hand + BEGIN + "".join(function(*described) for described in _core.collectives())
    if found == expected:
        return 0
    if only_check:
        print(f"{STUB} does not fit the core: run `python scripts/core_stub.py`", file=sys.stderr)
        return 1
    STUB.write_text(expected)
    return 0


if __name__ == "__main__":
    sys.exit(main())
