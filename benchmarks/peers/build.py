"""Compiles the kernels that the bench compares with, from the releases on PyPI: `python build.py FOLDER`.

It takes Linux on x86-64, Python 3.10 with pip, and g++; no GPU. FOLDER is what `lamport-rs bench --peers` is given.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from pathlib import Path

import peer_nccl
from peer_kernels import Toolchain, compile_unit, units, write_driver_stub, write_world_sizes
from peer_wheels import COMPILER, FLASHINFER, NCCL, NVCC, SGLANG, TVM_FFI, fetch, unpack

_ONLY_TO_COMPILE = ("3rdparty", "include", "src", "share")


def main() -> None:
    """Build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument("--wheels", type=Path, help="where wheels are kept (default: FOLDER-wheels)")
    parser.add_argument("--architecture", default="90a", help="of the GPUs, as nvcc calls it (default: %(default)s)")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[2, 4], metavar="N", help="(default: 2 4)")
    here = ".".join(platform.python_version_tuple()[:2])
    parser.add_argument("--python", default=here, help="the version that the bench will run on (default: %(default)s)")
    parser.add_argument("--nccl", action="store_true", help=f"bring NCCL {NCCL.release} along, too")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    work = folder.with_name(f"{folder.name}-work")
    wanted = [SGLANG, FLASHINFER, TVM_FFI, *COMPILER, *([NCCL] if arguments.nccl else [])]
    wheels = fetch(wanted, arguments.wheels or folder.with_name(f"{folder.name}-wheels"), arguments.python)
    for each in (folder, work):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir(parents=True)
    for wheel in wanted:
        unpack(wheel, wheels[wheel.package], work)
    _compile_all(folder, work, arguments.architecture, sorted(set(arguments.world_sizes)))
    _lay_tvm_ffi(work, folder)
    if arguments.nccl:
        (library,) = (work / "nvidia/nccl/lib").glob("libnccl.so.*")
        peer_nccl.pack(library, folder / "libnccl.so.2.xz", arguments.architecture)
    shutil.rmtree(work)
    _write_manifest(folder, arguments)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")


def _compile_all(folder: Path, work: Path, architecture: str, world_sizes: list[int]) -> None:
    tools = Toolchain(
        cuda=work / "nvidia/cu13",
        tvm_ffi=work / "tvm_ffi",
        sglang=work / "sglang/kernels/jit",
        flashinfer=work / "flashinfer/data",
        architecture=architecture,
    )
    write_world_sizes(world_sizes, work)
    write_driver_stub(work)
    (folder / "lib").mkdir()
    for unit in units(tools, world_sizes):
        began = time.monotonic()
        compile_unit(unit, tools, work, folder / "lib" / f"{unit.name}.so")
        print(f"{unit.name}: {time.monotonic() - began:.0f} s", flush=True)


def _lay_tvm_ffi(work: Path, folder: Path) -> None:
    """Lay the package by which Python calls the kernels beside them, without what only compilers read."""
    for name in _ONLY_TO_COMPILE:
        shutil.rmtree(work / "tvm_ffi" / name)
    (folder / "python").mkdir()
    shutil.move(work / "tvm_ffi", folder / "python/tvm_ffi")


def _write_manifest(folder: Path, arguments: argparse.Namespace) -> None:
    manifest = {
        "releases": {wheel.package: wheel.release for wheel in (SGLANG, FLASHINFER, TVM_FFI, NVCC)},
        "architecture": arguments.architecture,
        "world_sizes": sorted(set(arguments.world_sizes)),
        "python": arguments.python,
    }
    (folder / "peers.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
