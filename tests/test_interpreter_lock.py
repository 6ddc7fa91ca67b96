"""Freeing memory never keeps the interpreter's lock: it waits for kernels, and other threads go on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slow_driver import build

pytestmark = pytest.mark.long

PROGRAM = """
import ctypes, gc, sys, threading, time
import lamport_rs
from lamport_rs import _core

SLOW = 1
driver = ctypes.CDLL("libcuda.so.1")


def alone(message):
    return [message]


def create():
    return _core.Workspace(0, 1, 1 << 16, 5.0, None, 0, alone)


def the_last_reference():
    held = [create()]
    yield
    held.clear()


def a_table_that_outlives_it():
    held = [create()]
    held[:] = [held[0].table()]
    yield
    held.clear()


def a_tensor_of_its_table():
    held = [create()]
    held[:] = [held[0].table().__dlpack__()]
    yield
    held.clear()


def by_torch_within_a_call():
    # Torch lets the lock go when it frees a tensor, which collecting garbage may do in a call of the core.
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = create().table().__dlpack__()
    managed = get_pointer(capsule, b"dltensor")
    rename(capsule, b"used_dltensor")
    # The last pointer of a DLManagedTensor. A call by ctypes lets the lock go.
    delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.c_void_p.from_address(managed + 56).value)
    calls = [lambda: delete(managed)]

    def all_gather(message):
        if calls:
            calls.pop()()
        return [message]

    yield
    _core.Workspace(0, 1, 1 << 16, 5.0, None, 0, all_gather)


def clean_up():
    workspace = create()
    yield
    # That waits for the last operation, of which there is none; letting go waits for the device.
    workspace.clean_up()
    del workspace


def in_a_cycle():
    held = [create()]
    held.append(held)
    del held
    yield
    gc.collect()


def a_buffer():
    held = [_core.Buffer(0, 1, 1 << 16, 0.0, 0, alone)]
    yield
    held.clear()


def wait_for_the_device():
    workspace = create()
    yield
    workspace.synchronize()
    driver.be_slow(0)


case = globals()[sys.argv[1]]()
next(case)
beats, stop = [], False


def beat():
    while not stop:
        beats.append(time.monotonic())
        time.sleep(0.005)


thread = threading.Thread(target=beat)
thread.start()
while not beats:
    time.sleep(0.001)
driver.be_slow(SLOW)
began = time.monotonic()
next(case, None)
took = time.monotonic() - began
driver.be_slow(0)
stop = True
thread.join()
print(took >= SLOW, max(b - a for a, b in zip(beats, beats[1:])))
"""
SIGNALLED = """
import atexit, ctypes, os, signal, subprocess, sys, threading, time
from lamport_rs import _core
from lamport_rs.lifecycle import WorkspaceLifecycle

SLOW = 30
driver = ctypes.CDLL("libcuda.so.1")


class Workspace(WorkspaceLifecycle):
    def __init__(self):
        self._core = _core.Workspace(0, 1, 1 << 16, 5.0, None, 0, lambda message: [message])


def interrupt():
    time.sleep(0.5)
    print("signalled", time.monotonic(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)


def be_interrupted(wait):
    before = driver.blocks()
    driver.be_slow(SLOW)
    threading.Thread(target=interrupt).start()
    try:
        wait()
        print("no KeyboardInterrupt")
    except KeyboardInterrupt:
        print("heard", time.monotonic(), flush=True)
    # What waits for kernels has not let go of anything.
    assert driver.blocks() >= before, (driver.blocks(), before)
    driver.be_slow(0)


def leave(workspace):
    with workspace:
        pass


def let_go(held):
    held.clear()


how, workspace = sys.argv[1], Workspace()
if how == "synchronize":
    be_interrupted(workspace.synchronize)
    workspace.synchronize()
elif how in ("cleanup", "leave"):
    be_interrupted(workspace.cleanup if how == "cleanup" else lambda: leave(workspace))
    workspace.cleanup()
    try:
        workspace.check()
    except _core.LamportError as error:
        print("then:", error)
elif how == "let go":
    held = [_core.Workspace(0, 1, 1 << 16, 5.0, None, 0, lambda message: [message])]
    be_interrupted(lambda: let_go(held))
elif how == "let a buffer go":
    held = [_core.Buffer(0, 1, 1 << 16, 0.0, 0, lambda message: [message])]
    be_interrupted(lambda: let_go(held))
elif how == "exit handler":
    atexit.register(be_interrupted, workspace.cleanup)
else:
    driver.be_slow(SLOW)
    # Threads of Python's end with the interpreter.
    print("signalled", time.monotonic() + 0.5, flush=True)
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -INT {os.getpid()}"])
    if how == "exit unheard":
        workspace.cleanup()
"""
HEARD = 2.0
"""Seconds, on a busy machine, for what takes a fiftieth: to wait on would take 30."""


def be_signalled(folder: Path, how: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str], float]:
    """Let a process wait for its device and send it SIGINT. Return what it prints, and when it has ended."""
    command = [sys.executable, "-c", SIGNALLED, how]
    done = subprocess.run(command, env=build(folder), capture_output=True, text=True, timeout=120)
    ended = time.monotonic()
    return done, dict(line.split(" ", 1) for line in done.stdout.splitlines()), ended


@pytest.mark.parametrize("how", ["synchronize", "cleanup", "leave", "let go", "let a buffer go", "exit handler"])
def test_a_wait_for_the_device_ends_when_the_user_interrupts(tmp_path, how):
    done, told, ended = be_signalled(tmp_path, how)
    assert done.returncode == 0, done.stderr
    assert float(told["heard"]) - float(told["signalled"]) < HEARD
    assert ended - float(told["signalled"]) < 2 * HEARD
    if how in ("cleanup", "leave"):
        assert told["then:"] == "this workspace was cleaned up; create a new one on every rank"


@pytest.mark.parametrize("how", ["exit", "exit unheard"])
def test_a_process_that_waits_for_the_device_as_it_ends_is_ended_by_an_interrupt(tmp_path, how):
    done, told, ended = be_signalled(tmp_path, how)
    assert done.returncode in (-signal.SIGINT, 130), (done.returncode, done.stderr)
    assert ended - float(told["signalled"]) < 2 * HEARD


CASES = (
    "the_last_reference",
    "a_table_that_outlives_it",
    "a_tensor_of_its_table",
    "by_torch_within_a_call",
    "clean_up",
    "in_a_cycle",
    "a_buffer",
    "wait_for_the_device",
)
LONGEST_STALL = 0.6
"""Seconds, on a busy machine: each case takes one at least."""


@pytest.mark.parametrize("case", CASES)
def test_other_threads_go_on_while(tmp_path, case):
    command = [sys.executable, "-c", PROGRAM, case]
    done = subprocess.run(command, env=build(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    was_slow, stall = done.stdout.split()
    assert was_slow == "True"
    assert float(stall) < LONGEST_STALL
