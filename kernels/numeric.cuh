// Element types: how many values a 32-bit word holds, and how they become float32 and back.
#pragma once

#include "ptx.cuh"
#include "sentinel.cuh"
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

// Squares of a vector's values, summed. Two chains of additions, since one would be as long as the vector.
template <class Value>
__device__ __forceinline__ float sum_of_squares(const Vector& vector) {
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
        float values[Value::PER_WORD];
        Value::unpack(vector.words[word], values);
        if constexpr (Value::PER_WORD == 2) {
            even = fmaf(values[0], values[0], even);
            odd = fmaf(values[1], values[1], odd);
        } else if (word % 2 == 0) {
            even = fmaf(values[0], values[0], even);
        } else {
            odd = fmaf(values[0], values[0], odd);
        }
    }
    return even + odd;
}

}  // namespace lamport
