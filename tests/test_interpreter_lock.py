"""Freeing memory never keeps the interpreter's lock: it waits for kernels, and other threads go on."""

import subprocess
import sys

import pytest
from slow_driver import build

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
    held = [_core.Buffer(0, 1, 1 << 16, 0, alone)]
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
import ctypes, os, signal, threading, time
from lamport_rs import _core

driver = ctypes.CDLL("libcuda.so.1")
workspace = _core.Workspace(0, 1, 1 << 16, 5.0, None, 0, lambda message: [message])
workspace.synchronize()
driver.be_slow(4)
sent = []


def interrupt():
    time.sleep(0.5)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=interrupt).start()
try:
    workspace.synchronize()
except KeyboardInterrupt:
    print(time.monotonic() - sent[0])
driver.be_slow(0)
workspace.synchronize()
"""


def test_a_wait_for_the_device_ends_when_the_user_interrupts(tmp_path):
    command = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(command, env=build(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < LONGEST_STALL


CASES = (
    "the_last_reference",
    "a_table_that_outlives_it",
    "a_tensor_of_its_table",
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
