"""Shared libraries out of C, for tests that have something stand before a library of the system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def build_library(path: Path, source: str, *flags: str) -> Path:
    """Compile `source` to a shared library at `path`, and return that."""
    file = path.with_suffix(".c")
    file.write_text(source)
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", path, file, *flags], check=True)
    return path


def build_driver(folder: Path, source: str) -> None:
    """Compile a stand-in for the CUDA driver, by both names that a driver is looked for by."""
    build_library(folder / "libcuda.so.1", source)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
