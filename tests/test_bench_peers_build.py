"""`benchmarks/peers`: what it builds is what the benchmark looks for. Nothing is fetched or compiled here."""

from __future__ import annotations

import lzma
import re
import struct
import subprocess
import zipfile
from pathlib import Path

import peer_kernels
import peer_nccl
import peer_wheels
import pytest
import record
from lamport_rs.command_line.bench import nccl, peers
from lamport_rs.command_line.bench.implementations import sglang

FOLDER = Path(peer_kernels.__file__).parent


def toolchain(architecture: str = "90a") -> peer_kernels.Toolchain:
    return peer_kernels.Toolchain(Path("/cuda"), Path("/tvm"), Path("/sglang"), Path("/flashinfer"), architecture)


def test_the_releases_are_those_that_the_benchmark_calls():
    built = {(wheel.package, wheel.release) for wheel in (peer_wheels.SGLANG, peer_wheels.FLASHINFER)}
    assert built == {peers.SGLANG, peers.FLASHINFER}
    assert peer_wheels.NCCL.release == nccl.NEWEST


def test_the_libraries_are_those_that_the_benchmark_looks_for():
    world_sizes = (2, 3, 4)
    built = {f"{unit.name}.so" for unit in peer_kernels.units(toolchain(), world_sizes)}
    wanted = {each.file(name, ranks) for name, each in peers.LIBRARIES.items() for ranks in world_sizes}
    # SGLang's norm of Q and K is for groups of a power of two.
    assert built == wanted - {"sglang_qknorm_3.so"}


def test_the_libraries_export_what_the_benchmark_calls():
    sources = {unit.name: unit.source for unit in peer_kernels.units(toolchain(), [2])}
    for name in ("flashinfer_trtllm", "flashinfer_mnnvl"):
        sources[name] = (FOLDER / f"{name}.cu").read_text()
    exported = {name: re.findall(r"EXPORT_TYPED_FUNC\((\w+), ", source) for name, source in sources.items()}
    assert exported == {
        "sglang_registry": ["register_communicator"],
        "sglang_all_reduce_2": ["all_reduce"],
        "sglang_norm_2": ["run_plain"],
        "sglang_qknorm_2": ["fused_parallel_qknorm", "get_max_occupancy"],
        "flashinfer_trtllm": ["trtllm_allreduce_fusion"],
        "flashinfer_mnnvl": ["trtllm_mnnvl_allreduce_fusion"],
        # FlashInfer's own source, as it is.
        "flashinfer_vllm": [],
    }
    for size in (sglang.HIDDEN, peers.SGLANG_CLUSTER):
        assert f" {size}, " in sources["sglang_norm_2"]
    assert f" {sglang.Q_SIZE}, {sglang.KV_SIZE}, " in sources["sglang_qknorm_2"]


def test_groups_and_architectures_reach_the_compiler(tmp_path, monkeypatch):
    peer_kernels.write_world_sizes([2, 8], tmp_path)
    assert (tmp_path / "peer_world_sizes.h").read_text() == "#define PEER_WORLD_SIZES(CASE) CASE(2) CASE(8)\n"
    lines: list[list[str]] = []
    monkeypatch.setattr(peer_kernels, "_run", lambda line, _work: lines.append(line))
    (unit, *_) = peer_kernels.units(toolchain("100a"), [2])
    peer_kernels.compile_unit(unit, toolchain("100a"), tmp_path, tmp_path / "made.so")
    compiled, linked = lines
    assert "-gencode=arch=compute_100a,code=sm_100a" in compiled
    assert "-DSGL_CUDA_ARCH=1000" in compiled
    assert linked[-1] == str(tmp_path / "made.so")


def test_a_compiler_that_fails_is_quoted(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)^sh -c .*no such kernel"):
        peer_kernels._run(["sh", "-c", "echo no such kernel >&2; exit 1"], tmp_path)


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_only_wheels_that_are_not_there_are_fetched_and_for_the_right_python(tmp_path, monkeypatch, python):
    here = [peer_wheels.SGLANG, peer_wheels.FLASHINFER]
    (tmp_path / "sglang-0.5.23-cp311-cp311-manylinux_2_34_x86_64.whl").touch()
    (tmp_path / "flashinfer_python-0.7.2.post1-py3-none-any.whl").touch()
    (tmp_path / "apache_tvm_ffi-0.1.15.post2-cp311-cp311-manylinux_2_24_x86_64.whl").touch()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("they are there"))
    assert set(peer_wheels.fetch(here, tmp_path, python)) == {"sglang", "flashinfer-python"}
    asked: list[list[str]] = []

    def download(line: list[str], check: bool) -> None:
        asked.append(line)
        tag = f"cp{python.replace('.', '')}"
        (tmp_path / f"apache_tvm_ffi-0.1.15.post2-{tag}-{tag}-manylinux_2_24_x86_64.whl").touch()

    monkeypatch.setattr(subprocess, "run", download)
    found = peer_wheels.fetch([*here, peer_wheels.TVM_FFI], tmp_path, python)
    (line,) = asked
    assert line[-1] == "apache-tvm-ffi==0.1.15.post2"
    assert line[line.index("--python-version") + 1] == python
    assert f"-cp{python.replace('.', '')}-" in found["apache-tvm-ffi"].name


def test_sglangs_sources_come_for_a_python_that_it_has_a_wheel_for(tmp_path, monkeypatch):
    asked = {}

    def download(line: list[str], check: bool) -> None:
        asked[line[line.index("--python-version") + 1]] = line[-1]
        (tmp_path / "sglang-0.5.23-cp312-cp312-manylinux_2_34_x86_64.whl").touch()
        (tmp_path / "apache_tvm_ffi-0.1.15.post2-cp310-cp310-manylinux_2_24_x86_64.whl").touch()

    monkeypatch.setattr(subprocess, "run", download)
    peer_wheels.fetch([peer_wheels.SGLANG, peer_wheels.TVM_FFI], tmp_path, "3.10")
    assert asked == {"3.12": "sglang==0.5.23", "3.10": "apache-tvm-ffi==0.1.15.post2"}


def test_a_wheel_that_pip_does_not_bring_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="pip left no wheel of apache-tvm-ffi in"):
        peer_wheels.fetch([peer_wheels.TVM_FFI], tmp_path, "3.12")


def test_what_is_wanted_of_a_wheel_is_unpacked_with_its_permissions(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in ("bin/nvcc", "doc/nvcc.txt"):
            member = zipfile.ZipInfo(name)
            member.external_attr = 0o755 << 16
            archive.writestr(member, "text")
    wheel = peer_wheels.Wheel("a", "1", ("bin/",))
    peer_wheels.unpack(wheel, tmp_path / "a.whl", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["nvcc"]
    assert (tmp_path / "out" / "bin" / "nvcc").stat().st_mode & 0o777 == 0o755


def entry(kind: int, architecture: int, code: bytes) -> bytes:
    header = struct.pack("<HHIQ12xI", kind, 0, 64, len(code), architecture)
    return header.ljust(64, b"\1") + code


def elf(sections: dict[str, bytes]) -> bytes:
    """A 64-bit ELF file of nothing but sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in sections) + b".names\0"
    data, headers = bytearray(64), []
    for name, content in {**sections, ".names": names}.items():
        headers.append(struct.pack("<I20xQQ24x", names.index(name.encode() + b"\0"), len(data), len(content)))
        data += content
    struct.pack_into("<Q", data, 0x28, len(data))
    struct.pack_into("<HHH", data, 0x3A, 64, len(headers), len(headers) - 1)
    return bytes(data) + b"".join(headers)


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


HERE, ELSEWHERE, TEXT, HOST = b"for sm_90" * 8, b"for sm_80" * 8, b"some PTX" * 9, b"host code" * 8


def library_for_several_gpus() -> bytes:
    code = container(entry(2, 80, ELSEWHERE), entry(2, 90, HERE), entry(1, 90, TEXT)) + bytes(8)
    code += container(entry(2, 90, HERE), entry(2, 100, ELSEWHERE))
    return elf({".text": HOST, ".nv_fatbin": code, "__nv_relfatbin": ELSEWHERE})


def test_of_nccl_only_the_code_for_these_gpus_is_carried_along(tmp_path):
    before = library_for_several_gpus()
    (tmp_path / "libnccl.so.2").write_bytes(before)
    peer_nccl.pack(tmp_path / "libnccl.so.2", tmp_path / "packed.xz", "90a")
    after = lzma.decompress((tmp_path / "packed.xz").read_bytes())
    assert len(after) == len(before)
    kept = {text: after.count(text) for text in (HERE, ELSEWHERE, TEXT, HOST)}
    assert kept == {HERE: 2, ELSEWHERE: 0, TEXT: 0, HOST: 1}
    # All else is as it was, the headers of what has gone, too.
    for text in (ELSEWHERE, TEXT):
        before = before.replace(text, bytes(len(text)))
    assert after == before


def test_an_nccl_without_code_for_these_gpus_is_refused():
    with pytest.raises(ValueError, match="no code for sm_120"):
        peer_nccl.zero_others(bytearray(library_for_several_gpus()), 120)


@pytest.mark.parametrize("own", [False, True])
def test_the_record_is_of_the_collectives_with_the_nccl_that_is_brought_along(own, tmp_path, monkeypatch):
    (tmp_path / "libnccl.so.2.xz").write_bytes(lzma.compress(b"a library"))
    found = {}

    def finish(line: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        preloaded = env.get("LD_PRELOAD")
        found.update(line=line, nccl=Path(preloaded).read_bytes() if preloaded else None)
        return subprocess.CompletedProcess(line, 3)

    monkeypatch.setattr(subprocess, "run", finish)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    option = ["--torch-nccl"] if own else []
    monkeypatch.setattr("sys.argv", ["record.py", str(tmp_path), *option, "--world-sizes", "2"])
    assert record.main() == 3
    assert found["nccl"] == (None if own else b"a library")
    assert found["line"][1:6] == ["-m", "lamport_rs", "bench", "--peers", str(tmp_path)]
    assert found["line"][-2:] == ["--world-sizes", "2"]
