"""The wheels that the peers are built from: which ones, how they are fetched, and what of them is unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A release on PyPI."""

    package: str
    release: str
    wanted: tuple[str, ...] = ("",)
    """How the paths begin that are unpacked."""
    python: str | None = None
    """The Python whose wheel is taken, if only what is the same for all Pythons is wanted."""


SGLANG = Wheel("sglang", "0.5.23", ("sglang/kernels/jit/csrc/", "sglang/kernels/jit/include/"), python="3.12")
FLASHINFER = Wheel(
    "flashinfer-python",
    "0.7.2.post1",
    tuple(f"flashinfer/data/{folder}/" for folder in ("csrc", "include", "cccl", "spdlog/include")),
)
TVM_FFI = Wheel("apache-tvm-ffi", "0.1.15.post2")
"""By which Python calls both."""
NVCC = Wheel("nvidia-cuda-nvcc", "13.0.88")
COMPILER = (
    NVCC,
    Wheel("nvidia-nvvm", "13.0.88"),
    Wheel("nvidia-cuda-crt", "13.0.88"),
    Wheel("nvidia-cuda-runtime", "13.0.96"),
    Wheel("nvidia-cuda-cccl", "13.0.85"),
    Wheel("nvidia-curand", "10.4.0.35", ("nvidia/cu13/include/",)),
)
"""Unpacked one over the other they are a CUDA toolkit, as far as it is needed."""
NCCL = Wheel("nvidia-nccl-cu13", "2.32.3", ("nvidia/nccl/lib/",))

_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12)]
_PLATFORMS += [f"manylinux{year}_x86_64" for year in (2014, 2010)]


def fetch(wheels: Sequence[Wheel], folder: Path, python: str) -> dict[str, Path]:
    """Return each package's wheel in `folder`, for such a Python; those that are not there yet come from PyPI."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in wheels if _in_folder(wheel, folder, python) is None]
    for version in sorted({wheel.python or python for wheel in missing}):
        line = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        line += ["--implementation", "cp", "--python-version", version]
        line += [part for platform in _PLATFORMS for part in ("--platform", platform)]
        wanted = [f"{each.package}=={each.release}" for each in missing if (each.python or python) == version]
        subprocess.run([*line, *wanted], check=True)
    found = {wheel.package: _in_folder(wheel, folder, python) for wheel in wheels}
    if absent := [package for package, path in found.items() if path is None]:
        raise SystemExit(f"pip left no wheel of {', '.join(absent)} in {folder}")
    return {package: path for package, path in found.items() if path is not None}


def unpack(wheel: Wheel, path: Path, folder: Path) -> None:
    """Unpack what is wanted of it, with the permissions, which `zipfile` would forget."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.startswith(wheel.wanted) and not member.is_dir():
                target = archive.extract(member, folder)
                if mode := member.external_attr >> 16 & 0o777:
                    os.chmod(target, mode | 0o600)


def _in_folder(wheel: Wheel, folder: Path, python: str) -> Path | None:
    tag = f"cp{python.replace('.', '')}"
    fits = [
        path
        for path in sorted(folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.release}-*.whl"))
        if f"-{tag}-" in path.name or "-py3-" in path.name or wheel.python is not None
    ]
    return fits[0] if fits else None
