"""Where the kernels of the benchmark's peers come from, and what is said where there are none."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lamport_rs import LamportError, __main__
from lamport_rs.command_line.bench import peers
from lamport_rs.command_line.bench.member import UnavailableError


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    """The packages that are installed, and no folder."""
    found: dict[str, str] = {}

    def version(package: str) -> str:
        if package not in found:
            raise peers.importlib.metadata.PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr(peers.importlib.metadata, "version", version)
    monkeypatch.delenv(peers.VARIABLE, raising=False)
    peers.library.cache_clear()
    yield found
    peers.library.cache_clear()


@pytest.mark.parametrize("name", peers.LIBRARIES)
def test_a_peer_that_is_not_installed_is_named_with_what_to_do(installed, name):
    package, release = peers.LIBRARIES[name].package
    with pytest.raises(UnavailableError, match=rf"^{package} is not installed; benchmarks/peers/README.md says how"):
        peers.library(name, 2)
    installed[package] = "0.1"
    with pytest.raises(UnavailableError, match=rf"^{package} 0\.1 is installed, and the bench calls {release}; "):
        peers.library(name, 2)


def test_an_installed_package_compiles_its_kernels(installed, monkeypatch):
    package, release = peers.FLASHINFER
    installed[package] = release
    generator = SimpleNamespace(build_and_load=lambda: "the kernels")
    comm = SimpleNamespace(gen_trtllm_comm_module=lambda: generator)
    monkeypatch.setitem(sys.modules, "flashinfer.jit.comm", comm)
    assert peers.library("flashinfer_trtllm", 2) == "the kernels"
    assert peers.releases() == {package: release}


def test_an_installed_sglang_compiles_with_the_arguments_of_its_models(installed, monkeypatch):
    package, release = peers.SGLANG
    installed[package] = release
    asked = {}

    def note(name: str) -> Any:
        return lambda *arguments, **named: asked.update({name: (*arguments, *named.values())})

    operations = "sglang.kernels.ops.communication"
    for module, functions in {
        "sglang.kernels.jit.utils": ["load_jit"],
        f"{operations}.all_reduce": ["get_all_reduce_module", "get_fused_parallel_qknorm_module"],
        f"{operations}.all_reduce_fusion": ["_jit_module"],
    }.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: note(name) for name in functions}))
    for name in peers.LIBRARIES:
        if name.startswith("sglang"):
            peers.library(name, 4)
    registered = [("register_communicator", "register_communicator")]
    assert asked == {
        "load_jit": ("communicator", ["distributed/registry.cuh"], registered),
        "get_all_reduce_module": (torch.bfloat16, 4),
        "_jit_module": (4, 4096, 0, 4, torch.bfloat16),
        "get_fused_parallel_qknorm_module": (torch.bfloat16, 4, 6144, 1024),
    }


@pytest.fixture
def folder(tmp_path, installed, monkeypatch) -> Path:
    """A folder as `build.py` makes it, with empty libraries for two ranks."""
    manifest = {
        "releases": dict((peers.SGLANG, peers.FLASHINFER)),
        "architecture": "90a",
        "world_sizes": [2],
        "python": "2.7",
    }
    (tmp_path / "peers.json").write_text(json.dumps(manifest))
    (tmp_path / "lib").mkdir()
    for name, each in peers.LIBRARIES.items():
        (tmp_path / "lib" / each.file(name, 2)).touch()
    monkeypatch.setenv(peers.VARIABLE, str(tmp_path))
    return tmp_path


def test_a_folder_goes_before_the_installed_packages(folder, monkeypatch):
    loaded = []
    monkeypatch.setattr(peers, "tvm_ffi", lambda: SimpleNamespace(load_module=loaded.append))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("sglang_norm", "flashinfer_mnnvl"):
        peers.library(name, 2)
    assert loaded == [str(folder / "lib" / name) for name in ("sglang_norm_2.so", "flashinfer_mnnvl.so")]
    assert peers.releases() == dict((peers.SGLANG, peers.FLASHINFER))


def test_a_group_that_a_folder_was_not_built_for_is_named(folder):
    for name in ("sglang_norm", "flashinfer_trtllm"):
        with pytest.raises(UnavailableError, match=r"was built for 2 ranks; build.py --world-sizes takes others"):
            peers.library(name, 4)


def test_kernels_for_other_gpus_are_not_launched(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    with pytest.raises(
        UnavailableError, match=r"was built for sm_90a, and this GPU is sm_100; build.py --architecture"
    ):
        peers.library("flashinfer_trtllm", 2)


def test_a_tvm_ffi_for_another_python_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)
    before = list(sys.path)
    with pytest.raises(UnavailableError, match=r"tvm_ffi of .* is for Python 2\.7, and cannot be imported by 3\."):
        peers.tvm_ffi()
    assert sys.path == before


def test_the_folders_tvm_ffi_serves_where_none_is_installed(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "tvm_ffi", raising=False)
    if find_spec("tvm_ffi") is not None:
        pytest.skip("tvm_ffi is installed here, and goes before the folder's")
    (folder / "python" / "tvm_ffi").mkdir(parents=True)
    (folder / "python" / "tvm_ffi" / "__init__.py").write_text("WHERE = 'the folder'\n")
    try:
        assert peers.tvm_ffi().WHERE == "the folder"
    finally:
        sys.modules.pop("tvm_ffi", None)


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "holds no kernels of peers"),
        ("{}", "holds no kernels of peers"),
        ('{"releases": {"sglang": "0.5.22"}}', r"was built from sglang 0\.5\.22, and this bench calls 0\.5\.23"),
    ],
)
def test_a_folder_that_does_not_suit_is_refused_before_anything_starts(
    how, manifest, reason, tmp_path, monkeypatch, capsys
):
    if manifest is not None:
        (tmp_path / "peers.json").write_text(manifest)
    with pytest.raises(LamportError, match=reason):
        peers.manifest_of(tmp_path)
    named = ["--peers", str(tmp_path)] if how == "argument" else []
    monkeypatch.setenv(peers.VARIABLE, str(tmp_path) if how == "variable" else "")
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--backend", "host", "--no-record", *named])
    assert __main__.main() == 1
    assert str(tmp_path) in capsys.readouterr().err
