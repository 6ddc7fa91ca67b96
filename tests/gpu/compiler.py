"""Compiles a CUDA kernel with the NVRTC that torch comes with, and launches it on torch's current stream.

torch has `torch.cuda._compile_kernel` for this, but it needs setuptools, and finds NVRTC only where it is loaded
already.
"""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import driver
import torch

PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""The number of the launch attribute in cuda.h."""


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, with a value that is an int."""

    _fields_ = (("id", ctypes.c_int), ("_pad", ctypes.c_char * 4), ("_value", ctypes.c_int * 16))

    def __init__(self, number: int, value: int) -> None:
        super().__init__(number)
        self._value[0] = value


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )


@cache
def nvrtc() -> ctypes.CDLL:
    """The library: that of torch's CUDA version from the package registry, or else the system's."""
    name = f"libnvrtc.so.{torch.version.cuda.split('.')[0]}"
    package = find_spec("nvidia")
    folders = package.submodule_search_locations if package else []
    found = [str(path) for folder in folders for path in sorted(Path(folder).glob(f"*/lib/{name}"))]
    for candidate in [*found, name, f"/usr/local/cuda/lib64/{name}"]:
        with contextlib.suppress(OSError):
            for builtins in Path(candidate).parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))  # NVRTC opens it by its name, which is found only if it is loaded already.
            return ctypes.CDLL(candidate)
    raise FileNotFoundError(f"there is no {name} that can be loaded; tried {found} and the system's")


@cache
def compile_cubin(source: str, architecture: str) -> bytes:
    """Compile `source` for a real architecture, `"sm_90"` for instance."""
    library, program = nvrtc(), ctypes.c_void_p()
    created = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"test.cu", 0, None, None)
    assert created == 0, f"nvrtcCreateProgram returned {created}"
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
    size = ctypes.c_size_t()
    if library.nvrtcCompileProgram(program, 1, options) != 0:
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        raise AssertionError(f"the kernel does not compile:\n{log.value.decode()}")
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    binary = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetCUBIN(program, binary) == 0
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


class Kernel:
    """An `extern "C"` kernel on the current device. Arguments are tensors, passed as pointers, and 32-bit integers."""

    def __init__(self, source: str, name: str) -> None:
        torch.cuda.synchronize()  # Makes the device's context this thread's.
        major, minor = torch.cuda.get_device_capability()
        self._binary = compile_cubin(source, f"sm_{major}{minor}")
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        driver.call("cuModuleLoadData", ctypes.byref(module), self._binary)
        driver.call("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())

    def __call__(self, blocks: int, threads: int, *arguments: torch.Tensor | int, dependent: bool = False) -> None:
        """Launch it; if `dependent`, it may start while the kernel before it still runs (from Hopper on)."""
        values = [
            ctypes.c_uint64(each.data_ptr()) if isinstance(each, torch.Tensor) else ctypes.c_int(each)
            for each in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        attribute = LaunchAttribute(PROGRAMMATIC_STREAM_SERIALIZATION, 1)
        stream = torch.cuda.current_stream().cuda_stream
        config = LaunchConfig((blocks, 1, 1), (threads, 1, 1), 0, stream, ctypes.pointer(attribute), int(dependent))
        driver.call("cuLaunchKernelEx", ctypes.byref(config), self._function, pointers, None)
