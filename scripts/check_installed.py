"""Check the installed package in an environment that has nothing but it and what it declares.

`check_wheel.py` makes such an environment and runs this file in it, with `python -I` so that no other folder is
searched. `check_rank.py` is one process of the group that it starts.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

WORLD_SIZE = 2
QUICK_START = Path(__file__).resolve().parents[1] / "examples" / "quick_start.py"
"""The README's first code."""
COMMAND_SECONDS = 240.0
GROUP_SECONDS = 300.0
"""Most seconds until all ranks have ended: compiling takes up to a minute on a slow machine."""


def main() -> int:
    """Run all checks; return the exit status. A check that fails ends the process with its reason."""
    check_imports()
    command = str(Path(sys.prefix, "bin", "lamport-rs"))
    run_command([command, "doctor"])
    run_command([command, "demo"])
    torchrun = [sys.executable, "-I", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_command([*torchrun, str(QUICK_START)])
    run_group()
    return 0


def check_imports() -> None:
    """Import every module of the package, where numpy, which torch can do without, is missing."""
    if importlib.util.find_spec("numpy") is not None:
        raise SystemExit("expected an environment without numpy, which the package does not declare; numpy is there")
    package = import_module("lamport_rs")
    home = Path(str(package.__file__))
    if not home.is_relative_to(sys.prefix):
        raise SystemExit(f"expected lamport_rs from {sys.prefix}, found {home}")
    modules = [each.name for each in pkgutil.walk_packages(package.__path__, "lamport_rs.")]
    for name in modules:
        import_module(name)
    print(f"  {len(modules)} modules import without numpy", flush=True)


def run_command(command: list[str]) -> None:
    """Run a command of the package; its output is shown, and it must end in time with status 0."""
    print(f"  $ {' '.join(command)}", flush=True)
    try:
        status = subprocess.run(command, timeout=COMMAND_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{command} did not end within {COMMAND_SECONDS:g} s") from None
    if status != 0:
        raise SystemExit(f"{command} ended with status {status}, expected 0")


def run_group() -> None:
    """Run the ranks as processes; each must come to its end and exit with status 0, in time."""
    with tempfile.TemporaryDirectory() as folder:
        # Nothing that another version or an earlier run has compiled.
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-I", str(Path(__file__).with_name("check_rank.py"))]
        ranks = [
            subprocess.Popen([*command, str(rank), str(WORLD_SIZE), os.path.join(folder, "store")], env=environment)
            for rank in range(WORLD_SIZE)
        ]
        try:
            statuses = wait_for(ranks, GROUP_SECONDS)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    if statuses != [0] * WORLD_SIZE:
        raise SystemExit(
            f"the ranks ended with {statuses}, expected 0 of each within {GROUP_SECONDS:g} s; None had not ended when "
            "the time was over or the other failed"
        )
    print(f"  {WORLD_SIZE} ranks ended by themselves", flush=True)


def wait_for(processes: list[subprocess.Popen[bytes]], seconds: float) -> list[int | None]:
    """Return the exit statuses once all have ended, one has failed, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        statuses = [process.poll() for process in processes]
        if None not in statuses or any(statuses):
            break
        time.sleep(0.05)
    return [process.poll() for process in processes]


if __name__ == "__main__":
    sys.exit(main())
