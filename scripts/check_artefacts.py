"""Look into what is published, without running it: `check_artefacts.py FILE...`, wheels, an sdist, crates, the site.

Of a wheel: its size, its architecture, the licences, the software bill of materials, and the project's addresses. Of an
sdist: that everything is there that the wheel is built from. Of a crate and of the site: likewise, in short.
"""

from __future__ import annotations

import email.parser
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

MOST_BYTES = 8 * 1000 * 1000
"""Of a wheel."""
LICENCES = ("LICENSE", "THIRD-PARTY.txt")
ADDRESSES = ("Changelog", "Documentation", "Issues", "Repository")
SOURCES = ("Cargo.lock", "Cargo.toml", "README.md", "rust/kernels/cuda/device/ptx.cuh", "pyproject.toml", *LICENCES)
IN_ARCHIVES = {
    ".crate": ("Cargo.toml", "README.md", "LICENSE"),
    "-site.tar.gz": ("index.html", "api.html", "quick_start.html", "objects.inv"),
    ".tar.gz": SOURCES,
}
"""Files that an archive must have, by how its name ends; the first that fits counts."""
PLATFORM = re.compile(r"-cp310-abi3-manylinux_2_28_(x86_64|aarch64)\.whl$")


def main() -> int:
    """Check the files that the arguments name; return the exit status."""
    faults = [f"{path}: {fault}" for path in map(Path, sys.argv[1:]) for fault in faults_of(path)]
    for fault in faults:
        print(f"check_artefacts: {fault}", file=sys.stderr)
    return 1 if faults or not sys.argv[1:] else 0


def faults_of(path: Path) -> list[str]:
    """Return what is wrong with a file that is published."""
    for ending, expected in IN_ARCHIVES.items():
        if path.name.endswith(ending):
            return faults_of_archive(path, expected)
    return faults_of_wheel(path)


def faults_of_wheel(path: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    faults = []
    if not PLATFORM.search(path.name):
        faults.append("expected a name that ends like -cp310-abi3-manylinux_2_28_x86_64.whl")
    if (size := path.stat().st_size) > MOST_BYTES:
        faults.append(f"expected {MOST_BYTES} bytes at most, found {size}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        faults += [f"expected {info}/licenses/{each}" for each in LICENCES if f"{info}/licenses/{each}" not in names]
        boms = [json.loads(archive.read(name)) for name in names if name.startswith(f"{info}/sboms/")]
    if not any({"cudarc", "pyo3"} <= {each["name"] for each in bom.get("components", [])} for bom in boms):
        faults.append(f"expected a bill of materials in {info}/sboms with the crates that are linked")
    found = {each.split(",")[0] for each in metadata.get_all("Project-URL", [])}
    return faults + [f"expected the address {each!r} in the metadata" for each in ADDRESSES if each not in found]


def faults_of_archive(path: Path, expected: Sequence[str]) -> list[str]:
    """Return what a compressed archive lacks."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    return [f"expected the file {each}" for each in expected if each not in names]


if __name__ == "__main__":
    sys.exit(main())
