// FP8 e4m3 where the hardware has no conversion to it (before compute capability 8.9).
#pragma once

#include "device/types.cuh"

namespace lamport {

// The nearest, of two the even one; beyond the largest, 448, that. Any NaN becomes the positive one.
__device__ __forceinline__ uint32 to_e4m3(float value) {
    const uint32 word = __float_as_uint(value);
    const uint32 sign = word >> 24 & 0x80u, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7fu;
    }
    if (magnitude >= 0x43e00000u) {
        return sign | 0x7eu;
    }
    if (magnitude < 0x3c800000u) {
        // Below 2^-6: in units of 2^-9, which the addition rounds to.
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 16384.0f) - __float_as_uint(16384.0f));
    }
    // The exponent's bias is 7 and not 127; three bits of the fraction are left.
    return sign | (magnitude + 0x7ffffu + (magnitude >> 20 & 1u) - (120u << 23)) >> 20;
}

}  // namespace lamport
