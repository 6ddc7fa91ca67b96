"""Build a wheel from an unpacked sdist, in an environment that has nothing yet and without git: `check_sdist.py SDIST`.

pip makes that environment of what the sdist's pyproject.toml asks for. Rust and a C compiler are those of the machine.
Kernels that other builds have compiled of the same sources are taken from `LAMPORT_RS_KERNEL_CACHE`, if it names a
folder; `make release` has it name none.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from pathlib import Path

from check_wheel import CheckError, run

BUILD_SECONDS = 1200.0
NEEDED = ("cargo", "rustc", "rustup", "cc", "gcc", "as", "ld", "ar", "sh", "env")
"""What the build finds on its PATH, and no git."""


def main() -> int:
    """Check the sdist that the argument names; return the exit status."""
    sdist = Path(sys.argv[1]).resolve()
    try:
        with tempfile.TemporaryDirectory(dir=sdist.parent) as folder:
            wheel = build(sdist, Path(folder))
    except CheckError as error:
        print(f"check_sdist: {error}", file=sys.stderr)
        return 1
    print(f"{sdist.name} builds {wheel} from nothing")
    return 0


def build(sdist: Path, folder: Path) -> str:
    """Return the name of the wheel that is built from the sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run([sys.executable, "-I", "-m", "venv", f"{folder}/venv"], str(folder), 300)
    pip = [f"{folder}/venv/bin/python", "-I", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # Neither this tree's environment and interpreter nor its build folder.
    settings = {"PATH": only_needed(folder), "PYO3_PYTHON": f"{folder}/venv/bin/python", "VIRTUAL_ENV": ""}
    settings |= {"CARGO_TARGET_DIR": f"{folder}/target", "TMPDIR": str(folder)}
    command = [*pip, "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", f"{folder}/out", str(source)]
    run(command, str(folder), BUILD_SECONDS, **settings)
    (wheel,) = (folder / "out").glob("*.whl")
    return wheel.name


def only_needed(folder: Path) -> str:
    """Return a folder for the PATH that has what the build needs, and nothing else."""
    programs = folder / "programs"
    programs.mkdir()
    for name in NEEDED:
        for place in os.get_exec_path():
            if (found := Path(place, name)).is_file():
                (programs / name).symlink_to(found)
                break
    return str(programs)


if __name__ == "__main__":
    sys.exit(main())
