"""Run the wheel for aarch64 on a machine with another processor, in an emulator: `check_wheel_aarch64.py WHEEL`.

Needs `qemu-aarch64-static` and the tools of Debian (`apt-get`, `dpkg-deb`), and no privileges. A Python for aarch64
comes from the Debian packages that this machine is set up for. A script stands in the place of its executable and runs
it in the emulator, so the processes that it starts are emulated without the kernel's help. The wheel is installed by
that Python's own pip, in an environment that has nothing else, with the oldest torch that it allows, which for aarch64
is without CUDA. Then `check_installed.py` does there what it does on other machines.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from check_wheel import CheckError, claims_of, run

EMULATOR = "qemu-aarch64-static"
PACKAGES = ("python3", "python3-venv", "libstdc++6")
SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
SECONDS = 900.0
"""Most seconds for all of it."""


def main() -> int:
    """Check the wheel that the argument names; return the exit status."""
    wheel = Path(sys.argv[1]).resolve()
    try:
        tools()
        # Not in /tmp, which may be memory.
        with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
            check(wheel, Path(folder))
    except CheckError as error:
        print(f"check_wheel_aarch64: {error}", file=sys.stderr)
        return 1
    print(f"{wheel.name} works alone, in the emulator")
    return 0


def tools() -> None:
    """Raise if the emulator or Debian's tools are not here."""
    missing = [name for name in (EMULATOR, "apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        raise CheckError(
            f"expected {', '.join(missing)} on the PATH, found none; on Debian: apt-get install qemu-user-static"
        )


def check(wheel: Path, folder: Path) -> None:
    """Install the wheel in an environment of the emulated Python, and check it there."""
    deadline = time.monotonic() + SECONDS
    with step("a Python for aarch64"):
        python = python_in(folder / "root")
    with step("an environment"):
        run_until(deadline, [python, "-I", "-m", "venv", f"{folder}/venv"], folder)
    pip = [f"{folder}/venv/bin/python", "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    torch = f"torch=={claims_of(wheel).torch}"
    with step(f"the wheel and {torch}, installed"):
        run_until(deadline, [*pip, "install", "--no-cache-dir", "--progress-bar", "off", str(wheel), torch], folder)
        run_until(deadline, [*pip, "check"], folder)
    checks = str(Path(__file__).resolve().with_name("check_installed.py"))
    with step("checks"):
        # A compiler of this machine makes nothing that the emulated Python could load.
        print(run_until(deadline, [f"{folder}/venv/bin/python", "-I", checks], folder, CXX="none"), flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what was done, and how long it took."""
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)


def run_until(deadline: float, command: list[str], folder: Path, **settings: str) -> str:
    """Run a command within what is left of the time, and return its output."""
    return run(command, str(folder), max(1.0, deadline - time.monotonic()), TMPDIR=str(folder), **settings)


def python_in(root: Path) -> str:
    """Unpack Debian's Python for aarch64 in a folder; return a script that runs it in the emulator."""
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings_of_apt(root).items())]
    folder = str(root.parent)
    run([*apt, "update"], folder, 300)
    run([*apt, "-y", "--no-install-recommends", "--download-only", "install", *PACKAGES], folder, 300)
    for package in sorted(root.glob("apt/cache/archives/*.deb")):
        run(["dpkg-deb", "-x", str(package), str(root)], folder, 60)
    link = root / "usr/bin/python3"
    executable = link.with_name(os.readlink(link))
    link.unlink()
    # By the name under which it was called, Python finds the environment that it is of.
    link.write_text(f'#!/bin/sh\nexec {EMULATOR} -L {root} -0 "$0" {executable} "$@"\n')
    link.chmod(0o755)
    found = run([str(link), "-c", "import platform; print(platform.machine())"], folder, 60)
    if found != "aarch64":
        raise CheckError(f"expected a Python on aarch64, found one on {found}")
    return str(link)


def settings_of_apt(root: Path) -> dict[str, str]:
    """Return settings of apt for another architecture, with lists, packages and state of their own."""
    sources = next((each for each in SOURCES if Path(each).is_file()), None)
    if sources is None:
        raise CheckError(f"expected Debian's sources of packages in {' or '.join(SOURCES)}, found neither")
    for name in ("apt/lists/partial", "apt/cache/archives/partial"):
        (root / name).mkdir(parents=True)
    (root / "apt/status").touch()
    architecture = "arm64"
    return {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": f"{root}/apt/lists",
        "Dir::State::status": f"{root}/apt/status",
        "Dir::Cache": f"{root}/apt/cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        # Its own user cannot write to a folder of ours.
        "APT::Sandbox::User": "",
    }


if __name__ == "__main__":
    sys.exit(main())
