"""A stand-in for the driver's library that breaks as no driver should, built with the C compiler that a build needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from shared_library import build_driver

_SOURCE = r"""
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = 9; return 0; }
int cuDeviceGetName(char* name, int length, int device) { memset(name, 'x', length); return 0; }
"""


def build(folder: Path, *others: str) -> Path:
    """A library in `folder` with few functions, and with functions of the names `others`, which do nothing.

    The name of its device does not end, for which the bindings of the driver panic.
    """
    build_driver(folder, _SOURCE + "".join(f"int {name}(void) {{ return 0; }}\n" for name in others))
    return folder


PROGRAM = """
import sys, time
from datetime import timedelta
import torch.distributed as dist, lamport_rs
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
for create in (lamport_rs.LamportWorkspace, lamport_rs.IpcBuffer, lamport_rs.get_allreduce_workspace):
    began = time.monotonic()
    try:
        create(rank, 2, 4096, device="cuda:0")
        print("created")
    except Exception as error:
        print(type(error).__name__, int(time.monotonic() - began), str(error))
    dist.barrier()
print("status:", lamport_rs.backends.backend_status()["cuda"])
"""


def run(folder: Path, store: Path, has_driver: tuple[bool, bool]) -> list[list[str]]:
    """What each of two ranks prints that constructs what there is on `cuda:0`, with this driver or with none."""
    ranks = []
    for rank, has in enumerate(has_driver):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)} if has else dict(os.environ)
        command = [sys.executable, "-c", PROGRAM, str(rank), str(store)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        return [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
