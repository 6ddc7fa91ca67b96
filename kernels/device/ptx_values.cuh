// PTX instructions that only compute: conversions, comparisons, reciprocals. Those that touch memory or have an order
// are in ptx.cuh, which includes this.
#pragma once

#include "device/e4m3.cuh"
#include "device/types.cuh"

namespace lamport::ptx {

// ---- Conversions, two 16-bit values a word, the first in the low half -----------------------------------------------
// To 16 bits they round to nearest even.

__device__ __forceinline__ uint32 pack_bfloat16(float low, float high) {
    uint32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ uint32 pack_float16(float low, float high) {
    uint32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ void unpack_float16(uint32 word, float& low, float& high) {
    asm("{.reg .b16 l, h;\n"
        " mov.b32 {l, h}, %2;\n"
        " cvt.f32.f16 %0, l;\n"
        " cvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high)
        : "r"(word));
}

// ---- Comparisons ----------------------------------------------------------------------------------------------------

// The larger one; NaN if either is.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// Within two units in the last place of 1 / value. Values and results below the least normal number are 0.
__device__ __forceinline__ float reciprocal_approximate(float value) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// The larger of the low halves and of the high ones.
__device__ __forceinline__ uint32 larger_halves(uint32 a, uint32 b) {
#if __CUDA_ARCH__ >= 900
    uint32 larger;
    asm("max.u16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
#else
    return max(a & 0xffffu, b & 0xffffu) | max(a >> 16, b >> 16) << 16;
#endif
}

// ---- Conversions to FP8 e4m3 ----------------------------------------------------------------------------------------

// Two values in the low half of a word, the first in its low byte. To nearest even; beyond 448, that.
__device__ __forceinline__ uint32 pack_e4m3(float low, float high) {
#if __CUDA_ARCH__ >= 890
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return to_e4m3(low) | to_e4m3(high) << 8;
#endif
}

}  // namespace lamport::ptx
