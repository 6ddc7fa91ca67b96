// The part of CUDA C++ that kernels/ uses, for a host's compiler. Included ahead of every kernel.
#pragma once

#include "emulator.h"
#include "device/types.cuh"

// The host's compilers have another operator for it.
#undef FIELD_OFFSET
#define FIELD_OFFSET(type, field) __builtin_offsetof(type, field)

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
// One object per kernel: the machine keeps a copy for each block, and puts it in its place while the block runs.
#define __shared__ static

struct EmulatorIndex {
    unsigned x;
};

#define threadIdx (EmulatorIndex{emulator_thread_index()})
#define blockIdx (EmulatorIndex{emulator_block_index()})
#define blockDim (EmulatorIndex{emulator_block_threads()})
#define gridDim (EmulatorIndex{emulator_grid_blocks()})

struct alignas(8) float2 {
    float x, y;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

inline unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
inline float __uint_as_float(unsigned word) { return __builtin_bit_cast(float, word); }
inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// The compiler is told to fuse nothing.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
inline float fabsf(float value) { return __builtin_fabsf(value); }
// The hardware's is off by up to two units in the last place.
inline float rsqrtf(float value) { return 1.0f / __builtin_sqrtf(value); }

inline void __syncthreads() { emulator_barrier(0, emulator_block_threads(), true); }

// ---- Warp-wide operations -------------------------------------------------------------------------------------------
// The machine knows those of whole warps.

inline void emulator_check_mask(unsigned mask) {
    if (mask != 0xffffffffu) {
        __builtin_trap();
    }
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator_check_mask(mask);
    emulator_sync_warp();
}

template <class Value>
Value __shfl_sync(unsigned mask, Value value, unsigned source_lane) {
    static_assert(sizeof(Value) == 4 || sizeof(Value) == 8, "shuffles move 32 or 64 bits");
    emulator_check_mask(mask);
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(Value));
    bits = emulator_shuffle(bits, source_lane % 32);
    __builtin_memcpy(&value, &bits, sizeof(Value));
    return value;
}

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, unsigned lane_mask) {
    return __shfl_sync(mask, value, (threadIdx.x % 32) ^ lane_mask);
}

inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
    emulator_check_mask(mask);
    return emulator_or_of_warp(value);
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        value = max(value, __shfl_xor_sync(mask, value, distance));
    }
    return value;
}

// ---- Shared memory --------------------------------------------------------------------------------------------------

// A kernel's only variables that can be written are its shared ones, so this is where they begin and end.
extern "C" char __bss_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

inline unsigned long long __cvta_generic_to_shared(const void* object) {
    return static_cast<const char*>(object) - __bss_start;
}

inline void* __cvta_shared_to_generic(unsigned long long address) { return __bss_start + address; }

// ---- How the machine enters a kernel --------------------------------------------------------------------------------

template <class Parameters>
struct EmulatorKernel {
    static constexpr unsigned long long PARAMETER_BYTES = sizeof(Parameters);

    template <void (*kernel)(Parameters)>
    static void enter(const void* parameters) {
        kernel(*static_cast<const Parameters*>(parameters));
    }
};

// Only its type is asked for.
template <class Parameters>
EmulatorKernel<Parameters> emulator_kernel(void (*)(Parameters));

#define EMULATOR_EXPORT(kernel)                                                                                  \
    extern "C" __attribute__((visibility("default"))) void emulator_enter(const void* parameters) {              \
        decltype(emulator_kernel(kernel))::enter<kernel>(parameters);                                            \
    }                                                                                                            \
    extern "C" __attribute__((visibility("default"))) unsigned long long emulator_parameter_bytes() {            \
        return decltype(emulator_kernel(kernel))::PARAMETER_BYTES;                                               \
    }                                                                                                            \
    extern "C" __attribute__((visibility("default"))) char* emulator_shared_begin() { return __bss_start; }      \
    extern "C" __attribute__((visibility("default"))) char* emulator_shared_end() { return _end; }
