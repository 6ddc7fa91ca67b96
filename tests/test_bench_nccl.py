"""The NCCL that the benchmark names, and its windows. Without a GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lamport_rs.command_line.bench import nccl
from lamport_rs.command_line.bench.cases import all_reduce_case, decode_case
from lamport_rs.command_line.bench.decode_step import pose_decode_step
from lamport_rs.command_line.bench.implementations import nccl_windows
from lamport_rs.command_line.bench.member import UnavailableError, join
from lamport_rs.command_line.bench.nccl import Window, format_version, nccl_version
from lamport_rs.command_line.bench.problems import pose
from ranks import Rank
from shared_library import build_library

needs_nccl = pytest.mark.skipif(not dist.is_nccl_available(), reason="torch was built without NCCL")
SAY_THE_VERSION = "from lamport_rs.command_line.bench.nccl import nccl_version; print(nccl_version())"


def test_a_version_is_read_from_nccls_number():
    assert [format_version(code) for code in (22809, 22703, 23203)] == ["2.28.9", "2.27.3", "2.32.3"]


@needs_nccl
def test_the_version_is_that_of_the_loaded_library():
    assert nccl_version() == ".".join(map(str, torch.cuda.nccl.version()))


@pytest.mark.long
@needs_nccl
def test_a_preloaded_library_is_the_one_that_is_named(tmp_path):
    source = "int ncclGetVersion(int *version) { *version = 23203; return 0; }\n"
    library = build_library(tmp_path / "libanother.so", source)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    line = [sys.executable, "-c", SAY_THE_VERSION]
    assert subprocess.check_output(line, env=environment, text=True).strip() == "2.32.3"


@dataclass
class Library:
    """NCCL as `Window` calls it."""

    status: int = 0
    handle: int = 7
    closed: list[tuple[int, int]] = field(default_factory=list)

    def ncclGetVersion(self, version) -> int:  # noqa: N802
        version._obj.value = 22809
        return 0

    def ncclCommWindowRegister(self, communicator, address, size, window, flags) -> int:  # noqa: N802
        assert (communicator.value, address.value, size.value, flags.value) == (1, 4096, 512, 1)
        window._obj.value = self.handle
        return self.status

    def ncclCommWindowDeregister(self, communicator, window) -> int:  # noqa: N802
        self.closed.append((communicator.value, window.value))
        return 0

    class ncclGetErrorString:  # noqa: N801  (a foreign function has attributes)
        def __new__(cls, code) -> bytes:
            assert cls.restype is ctypes.c_char_p
            return f"the text of {code}".encode()


@pytest.fixture
def library(monkeypatch) -> Library:
    made_up = Library()
    monkeypatch.setattr(nccl, "_library", lambda: made_up)
    return made_up


@needs_nccl
def test_a_window_is_registered_as_symmetric_and_given_up(library):
    window = Window(1, 4096, 512)
    assert library.closed == []
    window.close()
    assert library.closed == [(1, 7)]


@needs_nccl
def test_an_nccl_without_windows_is_named(library, monkeypatch):
    monkeypatch.delattr(Library, "ncclCommWindowRegister")
    with pytest.raises(UnavailableError, match=r"NCCL 2\.28\.9 has no windows; 2\.27 is the first that has"):
        Window(1, 4096, 512)


@needs_nccl
@pytest.mark.parametrize(
    ("status", "handle", "reason"),
    [
        (5, 0, r"NCCL 2\.28\.9 registered no window: the text of 5"),
        # No error, but no window either: NCCL's other kernels would be measured under the name.
        (0, 0, r"NCCL 2\.28\.9 made no window: its symmetric kernels do not run here"),
    ],
)
def test_a_window_that_nccl_does_not_make_is_none(library, status, handle, reason):
    library.status, library.handle = status, handle
    with pytest.raises(UnavailableError, match=reason):
        Window(1, 4096, 512)


@dataclass
class Registered:
    """What took the place of `Window`."""

    communicator: int
    address: int
    size: int
    open: bool = True

    def close(self) -> None:
        self.open = False


def sum_in_a_window(me: Rank) -> dict[str, object]:
    """`nccl_windows` between processes, where gloo sums and all memory is alike."""
    communicator = SimpleNamespace(mem_allocator=None, _comm_ptr=lambda: 1)
    with pytest.MonkeyPatch.context() as patch, join(me.rank, me.world_size, me.device, 1 << 20, 1) as member:
        patch.setattr(nccl_windows, "_communicator", lambda _: communicator)
        patch.setattr(nccl_windows, "Window", Registered)
        patch.setattr(torch.cuda, "MemPool", lambda allocator: allocator)
        patch.setattr(torch.cuda, "use_mem_pool", lambda _: nullcontext())
        patch.setattr(torch.cuda, "synchronize", lambda _: None)
        cases = [all_reduce_case(512, torch.float32), decode_case(2, "host", 1)]
        windows = nccl_windows.NcclWindows(member, cases)
        window, memory = windows._window, windows._memory
        problem = pose(cases[0], member)
        call = windows.prepare(problem)
        problem.check(call.run(), rounds_once=False)
        step = pose_decode_step(cases[1], member)
        memory.zero_()
        step.check(windows.prepare(step).run(), rounds_once=False)
        found = {
            "registered": (window.address, window.size) == (memory.data_ptr(), memory.nbytes),
            "size": window.size,
            "in the window": call.in_place.data_ptr() == memory.data_ptr(),
            "the step's sums, too": bool(memory.any()),
        }
        windows.close()
        return {**found, "open": window.open}


def test_sums_and_steps_are_in_the_window_and_right(ranks_of):
    for found in ranks_of(2).run(sum_in_a_window):
        assert found == {
            "registered": True,
            "size": 2 << 20,
            "in the window": True,
            "the step's sums, too": True,
            "open": False,
        }


def test_a_torch_that_does_not_give_its_communicator_is_named(monkeypatch):
    for missing in ("_comm_ptr", "mem_allocator"):
        nccl_of_old = SimpleNamespace(**{name: 1 for name in ("_comm_ptr", "mem_allocator") if name != missing})
        group = SimpleNamespace(_get_backend=lambda _, backend=nccl_of_old: backend)
        made_up = SimpleNamespace(all_reduce=lambda _: None, group=SimpleNamespace(WORLD=group))
        monkeypatch.setattr(nccl_windows, "dist", made_up)
        with pytest.raises(UnavailableError, match=f"does not give NCCL's {missing} to programs; 2.11 does"):
            nccl_windows._communicator(torch.device("cpu"))
