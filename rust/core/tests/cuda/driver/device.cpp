// Initialisation, devices, contexts, errors' names.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.hpp"

namespace standin {

namespace {

constexpr int DEVICES = 4;
// Small, so that grids are.
constexpr int MULTIPROCESSORS = 2;
constexpr int THREADS_PER_MULTIPROCESSOR = 1024;
constexpr int BLOCKS_PER_MULTIPROCESSOR = 4;

// Only its address counts.
struct Context {
    int device;
};

Context contexts[DEVICES] = {{0}, {1}, {2}, {3}};
// Of the same devices: as green contexts are.
Context others[DEVICES] = {{0}, {1}, {2}, {3}};
std::atomic<bool> is_retained[DEVICES];
std::atomic<bool> is_initialised{false};
thread_local Context* current = nullptr;

struct Name {
    int code;
    const char* name;
    const char* text;
};

constexpr Name NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when capturing"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Name* find_name(int code) {
    for (const Name& name : NAMES) {
        if (name.code == code) {
            return &name;
        }
    }
    return nullptr;
}

bool is_device(int device) { return device >= 0 && device < DEVICES; }

}  // namespace

int current_device() { return current == nullptr ? -1 : current->device; }

const void* current_context() { return current; }

}  // namespace standin

using namespace standin;

#define ENTER_INITIALISED(name)  \
    STANDIN_ENTER(name)          \
    if (!is_initialised) {       \
        return NOT_INITIALIZED;  \
    }

STANDIN_EXPORT Result cuInit(unsigned) {
    STANDIN_ENTER("cuInit")
    is_initialised = true;
    return SUCCESS;
}

STANDIN_EXPORT Result cuGetErrorName(int code, const char** name) {
    const Name* found = find_name(code);
    *name = found == nullptr ? nullptr : found->name;
    return found == nullptr ? INVALID_VALUE : SUCCESS;
}

STANDIN_EXPORT Result cuGetErrorString(int code, const char** text) {
    const Name* found = find_name(code);
    *text = found == nullptr ? nullptr : found->text;
    return found == nullptr ? INVALID_VALUE : SUCCESS;
}

STANDIN_EXPORT Result cuDeviceGetCount(int* count) {
    ENTER_INITIALISED("cuDeviceGetCount")
    *count = DEVICES;
    return SUCCESS;
}

STANDIN_EXPORT Result cuDeviceGet(int* device, int ordinal) {
    ENTER_INITIALISED("cuDeviceGet")
    if (!is_device(ordinal)) {
        return INVALID_DEVICE;
    }
    *device = ordinal;
    return SUCCESS;
}

/// The device that has a multiprocessor less than the others, in a process that is started so.
static int smaller_device() {
    const char* number = std::getenv("STANDIN_SMALLER_DEVICE");
    return number == nullptr ? -1 : std::atoi(number);
}

STANDIN_EXPORT Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    ENTER_INITIALISED("cuDeviceGetAttribute")
    if (!is_device(device)) {
        return INVALID_DEVICE;
    }
    // The numbers of CUdevice_attribute.
    switch (attribute) {
        case 16: *value = device == smaller_device() ? MULTIPROCESSORS - 1 : MULTIPROCESSORS; return SUCCESS;
        case 39: *value = THREADS_PER_MULTIPROCESSOR; return SUCCESS;
        case 75: *value = 9; return SUCCESS;
        case 76: *value = 0; return SUCCESS;
        case 106: *value = BLOCKS_PER_MULTIPROCESSOR; return SUCCESS;
        // Memory pools: there are none.
        case 115: *value = 0; return SUCCESS;
        default: return INVALID_VALUE;
    }
}

STANDIN_EXPORT Result cuDeviceGetName(char* name, int length, int device) {
    ENTER_INITIALISED("cuDeviceGetName")
    if (!is_device(device)) {
        return INVALID_DEVICE;
    }
    std::snprintf(name, static_cast<std::size_t>(length), "Stand-in %d", device);
    return SUCCESS;
}

STANDIN_EXPORT Result cuDeviceGetUuid(unsigned char* uuid, int device) {
    ENTER_INITIALISED("cuDeviceGetUuid")
    if (!is_device(device)) {
        return INVALID_DEVICE;
    }
    std::memset(uuid, 0x10 + device, 16);
    return SUCCESS;
}

STANDIN_EXPORT Result cuDeviceGetUuid_v2(unsigned char* uuid, int device) { return cuDeviceGetUuid(uuid, device); }

STANDIN_EXPORT Result cuDevicePrimaryCtxRetain(Context** context, int device) {
    ENTER_INITIALISED("cuDevicePrimaryCtxRetain")
    if (!is_device(device)) {
        return INVALID_DEVICE;
    }
    is_retained[device] = true;
    *context = &contexts[device];
    return SUCCESS;
}

// The core retains each context for ever.
STANDIN_EXPORT Result cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER_INITIALISED("cuDevicePrimaryCtxRelease")
    return is_device(device) && is_retained[device] ? SUCCESS : INVALID_DEVICE;
}

STANDIN_EXPORT Result cuCtxDestroy_v2(Context*) {
    ENTER_INITIALISED("cuCtxDestroy")
    return SUCCESS;
}

STANDIN_EXPORT Result cuCtxGetCurrent(Context** context) {
    ENTER_INITIALISED("cuCtxGetCurrent")
    *context = current;
    return SUCCESS;
}

STANDIN_EXPORT Result cuCtxSetCurrent(Context* context) {
    ENTER_INITIALISED("cuCtxSetCurrent")
    if (context != nullptr && !is_retained[context->device]) {
        return INVALID_CONTEXT;
    }
    current = context;
    return SUCCESS;
}

STANDIN_EXPORT Result cuCtxGetDevice(int* ordinal) {
    STANDIN_ENTER_CONTEXT("cuCtxGetDevice")
    *ordinal = device;
    return SUCCESS;
}

STANDIN_EXPORT Context* standin_other_context(int device) { return &others[device]; }

STANDIN_EXPORT Result cuCtxSynchronize() {
    STANDIN_ENTER_CONTEXT("cuCtxSynchronize")
    for (const Stream* stream : all_streams()) {
        if (stream->device == device && stream->capture != nullptr) {
            // Whatever the thread's mode: seen on driver 580.
            stream->capture->is_invalidated = true;
            return STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    synchronise_device(device);
    return SUCCESS;
}
