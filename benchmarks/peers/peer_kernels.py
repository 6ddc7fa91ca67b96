"""The shared libraries of the peers' kernels: what each is made of, and how it is compiled.

Those of SGLang export what its `load_jit` would, and those of FlashInfer what its sources export. Flags are theirs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
_TVM_HEADERS = ["container/tensor.h", "dtype.h", "error.h", "extra/c_env_api.h", "function.h"]
_FLASHINFER_FLAGS = (
    "-std=c++17 -use_fast_math -DNDEBUG -static-global-template-stub=false -Xfatbin=-compress-all --compress-mode=size "
    "-DFLASHINFER_ENABLE_F16 -DFLASHINFER_ENABLE_BF16 -DFLASHINFER_ENABLE_FP8_E4M3 -DFLASHINFER_ENABLE_FP8_E5M2 "
    "-DFLASHINFER_ENABLE_FP8_E8M0 -DFLASHINFER_ENABLE_FP4_E2M1"
)


@dataclass(frozen=True)
class Unit:
    """A shared library, compiled from one source."""

    name: str
    source: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Toolchain:
    """Where things were unpacked, and what for."""

    cuda: Path
    tvm_ffi: Path
    sglang: Path
    flashinfer: Path
    architecture: str
    """As `90a`."""

    @property
    def includes(self) -> list[str]:
        """The headers that all take."""
        folders = self.tvm_ffi / "include", self.tvm_ffi / "3rdparty/dlpack/include"
        return [part for folder in folders for part in ("-isystem", str(folder))]


def units(tools: Toolchain, world_sizes: Sequence[int]) -> Iterator[Unit]:
    """Yield all libraries for groups of these sizes, by the names of the bench's `peers.LIBRARIES`."""
    yield from _sglang(tools, world_sizes)
    data = tools.flashinfer
    folders = ["include", "csrc", "cccl/libcudacxx/include", "cccl/cub", "cccl/thrust"]
    flags = (
        *_FLASHINFER_FLAGS.split(),
        *(f"-I{data / folder}" for folder in folders),
        "-isystem",
        str(data / "spdlog/include"),
    )
    for name in ("flashinfer_trtllm", "flashinfer_mnnvl"):
        yield Unit(name, f'#include "{HERE / name}.cu"\n', flags)
    yield Unit("flashinfer_vllm", f'#include "{data / "csrc/vllm_custom_all_reduce.cu"}"\n', flags)


def _sglang(tools: Toolchain, world_sizes: Sequence[int]) -> Iterator[Unit]:
    """SGLang's, by template arguments: bfloat16, ranks, rows of 4096 and of 6144 + 1024, dependent launch."""
    digits = tools.architecture.rstrip("af")
    flags = ("-std=c++20", f"-DSGL_CUDA_ARCH={digits}0", f"-I{tools.sglang / 'include'}")

    def unit(name: str, file: str, **exports: str) -> Unit:
        lines = [f"#include <tvm/ffi/{header}>" for header in _TVM_HEADERS]
        lines += [f'#include "{tools.sglang / "csrc/distributed" / file}"', "namespace sglang {"]
        lines += [f"TVM_FFI_DLL_EXPORT_TYPED_FUNC({name}, ({function}));" for name, function in exports.items()]
        return Unit(name, "\n".join([*lines, "}", ""]), flags)

    yield unit("sglang_registry", "registry.cuh", register_communicator="register_communicator")
    for ranks in world_sizes:
        sums = f"AllReduceKernel<bf16_t, {ranks}, true>"
        yield unit(f"sglang_all_reduce_{ranks}", "custom_all_reduce.cuh", all_reduce=f"{sums}::run")
        norm = f"MoeFinalizeAllReduceKernel<{ranks}, 4096, 0, 4, true, bf16_t>"
        yield unit(f"sglang_norm_{ranks}", "all_reduce_fusion.cuh", run_plain=f"{norm}::run_plain")
        if ranks & (ranks - 1) == 0:  # Its kernel takes no other groups.
            qk = f"FusedParallelQKNormAcrossHead<bf16_t, {ranks}, 6144, 1024, true>"
            yield unit(
                f"sglang_qknorm_{ranks}",
                "tp_qknorm.cuh",
                fused_parallel_qknorm=f"{qk}::run",
                get_max_occupancy=f"{qk}::get_max_occupancy",
            )


def write_world_sizes(world_sizes: Sequence[int], folder: Path) -> None:
    """Leave the header that says for which groups there are instances."""
    cases = " ".join(f"CASE({ranks})" for ranks in world_sizes)
    (folder / "peer_world_sizes.h").write_text(f"#define PEER_WORLD_SIZES(CASE) {cases}\n")


def compile_unit(unit: Unit, tools: Toolchain, work: Path, target: Path) -> None:
    """Compile it to `target`, without symbols; raise `SystemExit`, with the compiler's words, if that fails."""
    source, made = work / f"{unit.name}.cu", work / f"{unit.name}.o"
    source.write_text(unit.source)
    code = f"arch=compute_{tools.architecture},code=sm_{tools.architecture}"
    compiler = [str(tools.cuda / "bin/nvcc"), *unit.flags, "-O3", "--expt-relaxed-constexpr", f"-gencode={code}"]
    _run([*compiler, "-Xcompiler", "-fPIC", f"-I{work}", *tools.includes, "-c", str(source), "-o", str(made)], work)
    # torch has loaded CUDA's runtime and the driver, by these names.
    libraries = [f"-L{tools.tvm_ffi / 'lib'}", "-ltvm_ffi", f"-L{tools.cuda / 'lib'}", "-l:libcudart.so.13"]
    stub = ["-Wl,--as-needed", f"-L{work}", "-l:libcuda.so.1"]
    _run(["g++", "-shared", "-s", str(made), *libraries, *stub, "-o", str(target)], work)


def write_driver_stub(work: Path) -> None:
    """Leave a library to link to in the driver's place, which need not be installed here."""
    source = work / "driver.c"
    source.write_text("void cuPointerGetAttribute(void) {}\n")
    name = "libcuda.so.1"
    _run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", str(work / name)], work)


def _run(line: list[str], work: Path) -> None:
    found = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(work)})
    if found.returncode != 0:
        raise SystemExit(f"{' '.join(line)}\n{found.stdout}{found.stderr}")
