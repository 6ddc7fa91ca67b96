"""Install a wheel, and nothing but what it declares, with the oldest and the newest torch, and check it there.

`check_wheel.py WHEEL [PYTHON...]`: the oldest torch that the wheel's metadata allows goes on the oldest Python to be
had, the newest torch on the newest. Pythons are those named, or else those on the PATH and pyenv's. What
`check_installed.py` does is done in each environment, which is deleted afterwards: each has gigabytes.
"""

from __future__ import annotations

import contextlib
import email.parser
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Version: TypeAlias = tuple[int, ...]

INSTALL_SECONDS = 900.0
CHECK_SECONDS = 900.0
"""Most seconds for all checks in one environment; each has a bound of its own."""
NO_TORCH = "No matching distribution found for torch"
"""What pip says if there is no such torch for a Python."""
SEARCHED = ("PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT", "PIP_REQUIREMENT", "PIP_TARGET")
"""What would bring other packages or versions than the wheel asks for."""


class CheckError(Exception):
    """The wheel, or the machine, is not as it must be."""


@dataclass(frozen=True)
class Claims:
    """What the metadata of a wheel claims."""

    python: Version
    """The oldest Python."""
    torch: str
    """The oldest torch."""


@dataclass(frozen=True)
class Python:
    """An interpreter, and its version."""

    version: Version
    path: str

    def __str__(self) -> str:
        return f"Python {'.'.join(map(str, self.version))} ({self.path})"


def main() -> int:
    """Check the wheel that the arguments name; return the exit status."""
    try:
        wheel, named = Path(sys.argv[1]).resolve(), sys.argv[2:]
        claims = claims_of(wheel)
        pythons = [each for each in map(describe, named or candidates()) if each and each.version >= claims.python]
        check_pythons(pythons, claims)
        oldest_first = sorted(set(pythons), key=lambda each: each.version)
        check(wheel, oldest_first, f"torch=={claims.torch}")
        check(wheel, oldest_first[::-1], "torch")
    except CheckError as error:
        print(f"check_wheel: {error}", file=sys.stderr)
        return 1
    print(f"{wheel.name} works alone, with the oldest and the newest torch")
    return 0


def claims_of(wheel: Path) -> Claims:
    """Return what the wheel's metadata claims: lower bounds of Python and torch."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(name).decode())
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    torch = [found[1] for each in needed if (found := re.fullmatch(r"torch *\(?>= *([\d.]+)\)?", each))]
    python = re.fullmatch(r">= *([\d.]+)", metadata.get("Requires-Python", ""))
    if len(torch) != 1 or python is None:
        raise CheckError(f"expected torch>=VERSION and Python >=VERSION in {wheel.name}, found {metadata.items()}")
    return Claims(tuple(map(int, python[1].split("."))), torch[0])


def candidates() -> list[str]:
    """Return the interpreters to be had: on the PATH, and pyenv's, which its shims hide."""
    names = ["python3", *(f"python3.{minor}" for minor in range(10, 30))]
    found = [path for name in names if (path := shutil.which(name))]
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    return [sys.executable, *found, *sorted(glob.glob(f"{root}/versions/*/bin/python3"))]


def describe(path: str) -> Python | None:
    """Return the interpreter that makes virtual environments, behind any environment or shim; None if it makes none."""
    code = "import ensurepip, sys, venv; print(*sys.version_info[:3], sys._base_executable)"
    try:
        asked = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    *version, executable = asked.stdout.split(maxsplit=3)
    return Python(tuple(map(int, version)), os.path.realpath(executable.strip()))


def check_pythons(pythons: list[Python], claims: Claims) -> None:
    """Say which Pythons there are, and what is not checked for want of another."""
    oldest = ".".join(map(str, claims.python))
    if not pythons:
        raise CheckError(f"expected a Python from {oldest} on, with venv and ensurepip, found none; name one")
    versions = sorted({each.version[:2] for each in pythons})
    print(f"Pythons here: {', '.join('.'.join(map(str, each)) for each in versions)}")
    if len(versions) == 1:
        print("NOT CHECKED: another Python; only this one is to be had, and both versions of torch are tried on it")
    if versions[0] != claims.python:
        print(f"NOT CHECKED: Python {oldest}, the oldest that is claimed; it is not to be had here")


def check(wheel: Path, pythons: list[Python], torch: str) -> None:
    """Check the wheel with a torch on the first of the Pythons that this torch has a wheel for."""
    for python in pythons:
        # Not in /tmp, which may be memory; pip unpacks there too.
        with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
            print(f"\n{wheel.name} with {torch} on {python}", flush=True)
            if not install(wheel, python, torch, folder):
                print(f"NOT CHECKED: this Python, for which there is no {torch}; trying the next", flush=True)
                continue
            checks = Path(__file__).resolve().with_name("check_installed.py")
            print(run([f"{folder}/venv/bin/python", "-I", str(checks)], folder, CHECK_SECONDS), flush=True)
            return
    raise CheckError(f"pip finds no {torch} for any Python here; name one that has it: make check-wheel PYTHONS=...")


def install(wheel: Path, python: Python, torch: str, folder: str) -> bool:
    """Make an environment with nothing but the wheel and what it declares; False if there is no such torch."""
    run([python.path, "-I", "-m", "venv", f"{folder}/venv"], folder, INSTALL_SECONDS)
    pip = [f"{folder}/venv/bin/python", "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Without the cache, which would keep gigabytes.
    command = [*pip, "install", "--no-cache-dir", "--progress-bar", "off", str(wheel), torch]
    if NO_TORCH in run(command, folder, INSTALL_SECONDS, allowed=NO_TORCH, TMPDIR=folder):
        return False
    run([*pip, "check"], folder, INSTALL_SECONDS)
    print(f"  installed: {run([*pip, 'freeze'], folder, INSTALL_SECONDS).replace(chr(10), ' ')}", flush=True)
    return True


def run(command: list[str], folder: str, seconds: float, allowed: str | None = None, **settings: str) -> str:
    """Run a command in `folder`, away from the sources, and return its output.

    It raises if the command fails, unless it says what is `allowed`, or does not end in time. Whatever the command has
    started ends with it.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if name not in SEARCHED}, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise CheckError(f"{' '.join(command)} did not end within {seconds:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0 and not (allowed and allowed in output):
        raise CheckError(f"{' '.join(command)} ended with status {process.returncode}, expected 0:\n{output}")
    return output.strip()


if __name__ == "__main__":
    sys.exit(main())
