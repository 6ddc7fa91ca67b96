"""Where the kernels of SGLang and FlashInfer come from: the folder of `--peers`, or the packages, where installed.

The packages compile them when they are first called, and `benchmarks/peers/build.py` beforehand, from the same sources.
So both bring the same functions, with the arguments of the releases that are named here.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lamport_rs import LamportError
from lamport_rs.command_line.bench.cases import HIDDEN, KV_SIZE, Q_SIZE
from lamport_rs.command_line.bench.member import UnavailableError

VARIABLE = "LAMPORT_RS_PEERS"
"""Names the folder to the ranks; `--peers` sets it."""
MANIFEST = "peers.json"
SGLANG, FLASHINFER = ("sglang", "0.5.23"), ("flashinfer-python", "0.7.2.post1")
"""Packages, and the releases whose functions the bench calls."""
SGLANG_CLUSTER = 4
"""Blocks for a row of 4096 in SGLang's fused norm, by its own choice for all numbers of rows."""
_SGLANG_OPERATIONS = "sglang.kernels.ops.communication"
_HOW_TO_BUILD = "benchmarks/peers/README.md says how to compile its kernels, for --peers FOLDER"


@dataclass(frozen=True)
class Library:
    """Some functions of a release."""

    package: tuple[str, str]
    from_package: Callable[[int], Any]
    """Has the installed package compile it, for so many ranks."""
    per_world_size: bool = False
    """Whether there is a file of it for each number of ranks."""

    def file(self, name: str, world_size: int) -> str:
        """Return what `build.py` calls it."""
        return f"{name}_{world_size}.so" if self.per_world_size else f"{name}.so"


def _flashinfer(generator: str) -> Callable[[int], Any]:
    def load(_world_size: int) -> Any:
        return getattr(import_module("flashinfer.jit.comm"), generator)().build_and_load()

    return load


def _sglang_registry(_world_size: int) -> Any:
    load_jit, name = import_module("sglang.kernels.jit.utils").load_jit, "register_communicator"
    return load_jit("communicator", cuda_files=["distributed/registry.cuh"], cuda_wrappers=[(name, name)])


def _sglang_all_reduce(world_size: int) -> Any:
    return import_module(f"{_SGLANG_OPERATIONS}.all_reduce").get_all_reduce_module(torch.bfloat16, world_size)


def _sglang_norm(world_size: int) -> Any:
    operation = import_module(f"{_SGLANG_OPERATIONS}.all_reduce_fusion")
    return operation._jit_module(world_size, HIDDEN, 0, SGLANG_CLUSTER, torch.bfloat16)


def _sglang_qknorm(world_size: int) -> Any:
    operation = import_module(f"{_SGLANG_OPERATIONS}.all_reduce")
    return operation.get_fused_parallel_qknorm_module(torch.bfloat16, world_size, Q_SIZE, KV_SIZE)


LIBRARIES = {
    "sglang_registry": Library(SGLANG, _sglang_registry),
    "sglang_all_reduce": Library(SGLANG, _sglang_all_reduce, per_world_size=True),
    "sglang_norm": Library(SGLANG, _sglang_norm, per_world_size=True),
    "sglang_qknorm": Library(SGLANG, _sglang_qknorm, per_world_size=True),
    "flashinfer_trtllm": Library(FLASHINFER, _flashinfer("gen_trtllm_comm_module")),
    "flashinfer_mnnvl": Library(FLASHINFER, _flashinfer("gen_trtllm_mnnvl_comm_module")),
    "flashinfer_vllm": Library(FLASHINFER, _flashinfer("gen_vllm_comm_module")),
}


@functools.cache
def library(name: str, world_size: int) -> Any:
    """Return the functions of one of `LIBRARIES`; raise `UnavailableError`, with the reason, where there are none."""
    wanted = LIBRARIES[name]
    folder = folder_in_use()
    if folder is None:
        _check_installed(*wanted.package)
        return wanted.from_package(world_size)
    built = manifest_of(folder)
    path = folder / "lib" / wanted.file(name, world_size)
    if world_size not in built["world_sizes"] or not path.exists():
        ranks = " or ".join(map(str, built["world_sizes"]))
        raise UnavailableError(
            f"{folder} has no {path.name}: it was built for {ranks} ranks; build.py --world-sizes takes others"
        )
    _check_architecture(folder, built["architecture"])
    return tvm_ffi().load_module(str(path))


def tvm_ffi() -> Any:
    """Return the package by which Python calls them: the installed one, or that of the folder."""
    folder = folder_in_use()
    try:
        return import_module("tvm_ffi")
    except ImportError as error:
        if folder is None:
            raise UnavailableError(f"tvm_ffi, which calls it, cannot be imported: {error}") from error
        sys.path.append(str(folder / "python"))
        try:
            return import_module("tvm_ffi")
        except ImportError as in_folder:
            here = ".".join(platform.python_version_tuple()[:2])
            raise UnavailableError(
                f"tvm_ffi of {folder} is for Python {manifest_of(folder)['python']}, and cannot be imported by {here}: "
                f"{in_folder}; build.py --python chooses another"
            ) from in_folder
        finally:
            sys.path.pop()


def use_folder(folder: Path) -> None:
    """Have this process, and those that it starts, take the kernels from a folder that `build.py` made."""
    manifest_of(folder)
    os.environ[VARIABLE] = str(folder.resolve())


def folder_in_use() -> Path | None:
    """Return the folder that the kernels come from; None for the installed packages."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return what `build.py` says about the folder; raise `LamportError` if it did not make it for this bench."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        releases = found["releases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LamportError(f"{folder} holds no kernels of peers: {error!r}; {_HOW_TO_BUILD}") from error
    for package, release in (SGLANG, FLASHINFER):
        if releases.get(package) != release:
            raise LamportError(
                f"{folder} was built from {package} {releases.get(package)}, and this bench calls {release}: build it "
                "anew"
            )
    return found


def releases() -> dict[str, str]:
    """Return the releases whose kernels can be called here, by package, and what they were compiled with."""
    folder = folder_in_use()
    if folder is not None:
        return dict(manifest_of(folder)["releases"])
    found = {}
    for package, release in (SGLANG, FLASHINFER):
        try:
            _check_installed(package, release)
        except UnavailableError:
            continue
        found[package] = release
    return found


def _check_installed(package: str, release: str) -> None:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError(f"{package} is not installed; {_HOW_TO_BUILD}") from None
    if found != release:
        raise UnavailableError(f"{package} {found} is installed, and the bench calls {release}; {_HOW_TO_BUILD}")


def _check_architecture(folder: Path, architecture: str) -> None:
    """Refuse kernels for other GPUs, before any is launched."""
    if not torch.cuda.is_available():
        return
    major, minor = torch.cuda.get_device_capability()
    if f"{major}{minor}" != architecture.rstrip("af"):
        raise UnavailableError(
            f"{folder} was built for sm_{architecture}, and this GPU is sm_{major}{minor}; build.py --architecture "
            "chooses another"
        )
