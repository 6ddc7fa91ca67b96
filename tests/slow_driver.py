"""A stand-in for the driver's library, with which one rank makes a workspace. It frees and waits slowly on demand.

It is built with the C compiler that a build needs.
"""

from __future__ import annotations

import os
from pathlib import Path

from shared_library import build_driver

_SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Result;
enum { PINNED_BYTES = 1 << 20 };
static int seconds;
static __thread void* current;
static char* pinned;
static int allocated;

void be_slow(int new_seconds) { seconds = new_seconds; }
int blocks(void) { return __atomic_load_n(&allocated, __ATOMIC_SEQ_CST); }

/* Whatever signals come meanwhile. */
static void take_a_while(void) {
    for (unsigned left = seconds; left != 0;) {
        left = sleep(left);
    }
}

Result cuInit(unsigned flags) { return 0; }
Result cuGetErrorName(Result error, const char** name) { *name = "CUDA_ERROR"; return 0; }
Result cuGetErrorString(Result error, const char** text) { *text = "an error"; return 0; }
Result cuDeviceGetCount(int* count) { *count = 1; return 0; }
Result cuDeviceGet(int* device, int index) { *device = index; return 0; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 76 ? 0 : 9; return 0; }
Result cuDeviceGetName(char* name, int length, int device) { snprintf(name, length, "slow"); return 0; }
Result cuDeviceGetUuid(void* uuid, int device) { memset(uuid, 1, 16); return 0; }
Result cuDevicePrimaryCtxRetain(void** context, int device) { *context = &seconds; return 0; }
Result cuCtxGetCurrent(void** context) { *context = current; return 0; }
Result cuCtxSetCurrent(void* context) { current = context; return 0; }
Result cuCtxGetDevice(int* device) { *device = 0; return 0; }
Result cuCtxSynchronize(void) { take_a_while(); return 0; }
Result cuStreamSynchronize(void* stream) { take_a_while(); return 0; }
Result cuStreamCreate(void** stream, unsigned flags) { *stream = &seconds; return 0; }
Result cuStreamWaitEvent(void* stream, void* event, unsigned flags) { return 0; }
Result cuStreamGetCaptureInfo_v2(void* stream, int* status, uint64_t* id, void* a, void* b, void* c) {
    *status = 0;
    return 0;
}
Result cuThreadExchangeStreamCaptureMode(int* mode) { return 0; }
Result cuEventCreate(void** event, unsigned flags) { *event = &seconds; return 0; }
Result cuEventDestroy_v2(void* event) { return 0; }
Result cuEventSynchronize(void* event) { return 0; }
Result cuEventRecord(void* event, void* stream) { return 0; }
Result cuModuleLoadData(void** module, const void* image) { *module = &seconds; return 0; }
Result cuModuleGetFunction(void** function, void* module, const char* name) { *function = strdup(name); return 0; }
Result cuModuleUnload(void* module) { return 0; }
Result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    *address = (uint64_t)malloc(bytes);
    __atomic_add_fetch(&allocated, 1, __ATOMIC_SEQ_CST);
    return 0;
}
Result cuMemFree_v2(uint64_t address) {
    take_a_while();
    free((void*)address);
    __atomic_sub_fetch(&allocated, 1, __ATOMIC_SEQ_CST);
    return 0;
}
Result cuMemGetAddressRange_v2(uint64_t* base, size_t* bytes, uint64_t address) { return 1; }
Result cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) { memcpy((void*)to, from, bytes); return 0; }
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) { return 0; }
Result cuMemsetD32_v2(uint64_t to, unsigned word, size_t words) { return 0; }
Result cuMemsetD2D32Async(uint64_t to, size_t pitch, unsigned word, size_t width, size_t height, void *stream) {
    return 0;
}
Result cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
    *pointer = pinned = bytes <= PINNED_BYTES ? calloc(1, PINNED_BYTES) : 0;
    return pinned ? 0 : 2;
}
Result cuMemFreeHost(void* pointer) { return 0; }
Result cuMemHostGetDevicePointer_v2(uint64_t* address, void* pointer, unsigned flags) {
    *address = (uint64_t)pointer;
    return 0;
}
Result cuIpcGetMemHandle(void* handle, uint64_t address) { memcpy(memset(handle, 0, 64), &address, 8); return 0; }
Result cuIpcOpenMemHandle_v2(uint64_t* address, ...) { return 1; }
Result cuIpcCloseMemHandle(uint64_t address) { return 0; }

/* The verification finds nothing wrong. Of the two addresses of pinned memory among its parameters, the second is where
   its result goes. */
Result cuLaunchKernelEx(const void* config, void* function, void** parameters, void** extra) {
    if (strcmp(function, "verify") == 0) {
        uint64_t* word = parameters[0];
        for (int found = 0; found < 2; word++) {
            found += *word - (uint64_t)pinned < PINNED_BYTES;
        }
        *(volatile uint32_t*)word[-1] = 0;
    }
    return 0;
}
"""


def build(folder: Path) -> dict[str, str]:
    """Build it in `folder`, and return the environment of a process that finds it.

    `be_slow(seconds)` makes it slow, and `blocks()` is how many blocks of memory it has not got back.
    """
    build_driver(folder, _SOURCE)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}
