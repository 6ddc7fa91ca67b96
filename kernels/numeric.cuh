// Element types: how many values a 32-bit word holds, and how they become float32 and back.
#pragma once

#include "ptx.cuh"
#include "types.cuh"

namespace lamport {

struct Float32 {
    static constexpr uint32 PER_WORD = 1;

    static __device__ __forceinline__ void unpack(uint32 word, float (&values)[PER_WORD]) {
        values[0] = __uint_as_float(word);
    }

    static __device__ __forceinline__ uint32 pack(const float (&values)[PER_WORD]) {
        return __float_as_uint(values[0]);
    }
};

struct Float16 {
    static constexpr uint32 PER_WORD = 2;

    static __device__ __forceinline__ void unpack(uint32 word, float (&values)[PER_WORD]) {
        ptx::unpack_float16(word, values[0], values[1]);
    }

    static __device__ __forceinline__ uint32 pack(const float (&values)[PER_WORD]) {
        return ptx::pack_float16(values[0], values[1]);
    }
};

struct BFloat16 {
    static constexpr uint32 PER_WORD = 2;

    // A bfloat16 is the upper half of the float32 of the same value.
    static __device__ __forceinline__ void unpack(uint32 word, float (&values)[PER_WORD]) {
        values[0] = __uint_as_float(word << 16);
        values[1] = __uint_as_float(word & 0xffff0000u);
    }

    static __device__ __forceinline__ uint32 pack(const float (&values)[PER_WORD]) {
        return ptx::pack_bfloat16(values[0], values[1]);
    }
};

// Values in a 16-byte vector.
template <class Element>
constexpr uint32 PER_VECTOR = VECTOR_WORDS * Element::PER_WORD;

}  // namespace lamport
