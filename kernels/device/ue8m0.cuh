// UE8M0: the exponent of a power of two, 2^(byte - 127). 255 is NaN, and there is no infinity.
#pragma once

#include "device/types.cuh"

namespace lamport {

constexpr uint32 UE8M0_NAN = 255;

// The least power of two that is not below `value`, which is not negative; 2^-127 is the least of all. What is beyond
// the largest becomes NaN, as NaN does.
__device__ __forceinline__ uint32 to_ue8m0(float value) {
    const uint32 word = __float_as_uint(value);
    // Any bit of the fraction carries into the exponent.
    const uint32 exponent = (word + 0x7fffffu) >> 23;
    // Half of the least normal float32 is 2^-127.
    return word <= 0x400000u ? 0 : min(exponent, UE8M0_NAN);
}

// The code of the least power of two by which `largest`, divided, is not beyond 448, which is 1.75 * 2^8. `largest` has
// 16 bits and is not negative. Infinity has NaN.
__device__ __forceinline__ uint32 ue8m0_for_e4m3(float largest) {
    const uint32 word = __float_as_uint(largest);
    // A fraction above 1.75 carries into the exponent.
    const int32 exponent = static_cast<int32>((word + 0x1fffffu) >> 23) - 8;
    return word >= 0x7f800000u ? UE8M0_NAN : max(exponent, 0);
}

// The reciprocal of a power of two up to 2^126; NaN for NaN.
__device__ __forceinline__ float reciprocal_of_ue8m0(uint32 byte) {
    return __uint_as_float(byte == UE8M0_NAN ? 0x7fffffffu : (254u - byte) << 23);
}

}  // namespace lamport
