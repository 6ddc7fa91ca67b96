// The MiniMax normalisation: RMSNorm over rows whose columns are spread over the group.
//
// Each rank holds `width` columns of every token's row. The ranks exchange one float32 per token and matrix, the sum of
// squares of their columns, and each normalises its own:
//
//   y = x * rsqrt(sum over ranks and columns of x^2 / (width * world_size) + epsilon) * weight
//
// in float32, rounded once. There are one or two matrices; with two (queries and keys of one packed row, say), a word
// for each travels side by side: word (token * matrices + matrix) of the rank's region.
//
// This file has the parameters, the division of a block between the matrices, and the arithmetic on one vector.
#pragma once

#include "group.cuh"
#include "numeric.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

namespace lamport {

// One matrix of a MiniMax operation. Rows begin at multiples of 16 bytes.
struct MinimaxMatrix {
    Address input;
    Address weight;
    Address output;
    uint32 input_row_bytes;
    uint32 output_row_bytes;
    // Of a row on this rank.
    uint32 vectors;
    // Warps of each block that work on this matrix.
    uint32 warps;
    // 1 / (width * world_size).
    float inverse_count;
    uint32 reserved;
};

template <uint32 matrices>
struct MinimaxParameters {
    Group group;
    MinimaxMatrix matrix[matrices];
    // Bytes of the operation's regions.
    uint32 region_bytes;
    uint32 tokens;
    float epsilon;
    uint32 reserved;
};

ASSERT_LAYOUT_OF_MinimaxMatrix(MinimaxMatrix);
ASSERT_LAYOUT_OF_MinimaxRms(MinimaxParameters<1>);
ASSERT_LAYOUT_OF_MinimaxRmsQk(MinimaxParameters<2>);

// A thread's place: its matrix, and its number among the threads that work on it.
struct MinimaxPlace {
    MinimaxMatrix matrix;
    // 0 or 1, the same for all of a warp.
    uint32 index;
    uint32 warp;
    uint32 thread;
    // False in a warp that has no matrix and is there for the other work only.
    bool has_matrix;

    template <uint32 matrices>
    __device__ __forceinline__ explicit MinimaxPlace(const MinimaxParameters<matrices>& parameters)
        : matrix(parameters.matrix[0]), index(0), warp(threadIdx.x / WARP_THREADS) {
        if constexpr (matrices == 2) {
            // Field by field: choosing between two structs of the parameters would copy both to local memory.
            const MinimaxMatrix& second = parameters.matrix[1];
            const uint32 first_warps = matrix.warps;
            const bool is_second = warp >= first_warps;
            index = is_second ? 1 : 0;
            warp -= is_second ? first_warps : 0;
            matrix.input = is_second ? second.input : matrix.input;
            matrix.weight = is_second ? second.weight : matrix.weight;
            matrix.output = is_second ? second.output : matrix.output;
            matrix.input_row_bytes = is_second ? second.input_row_bytes : matrix.input_row_bytes;
            matrix.output_row_bytes = is_second ? second.output_row_bytes : matrix.output_row_bytes;
            matrix.vectors = is_second ? second.vectors : matrix.vectors;
            matrix.warps = is_second ? second.warps : matrix.warps;
            matrix.inverse_count = is_second ? second.inverse_count : matrix.inverse_count;
        }
        has_matrix = warp < matrix.warps;
        thread = warp * WARP_THREADS + threadIdx.x % WARP_THREADS;
    }

    __device__ __forceinline__ uint32 threads() const { return matrix.warps * WARP_THREADS; }
};

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

// The weights of the columns of one vector of `Value`s. float32 weights of 16-bit values take two vectors.
template <class Value, class Weight>
struct VectorWeights {
    static constexpr uint32 VECTORS = Value::PER_WORD / Weight::PER_WORD;
    static constexpr uint32 BYTES = VECTORS * VECTOR_BYTES;

    Vector vectors[VECTORS];

    __device__ __forceinline__ void load(Address address) {
#pragma unroll
        for (uint32 i = 0; i < VECTORS; ++i) {
            vectors[i] = ptx::load_weight(address + i * VECTOR_BYTES);
        }
    }

    // Normalises the row's vector that these weights belong to.
    __device__ __forceinline__ Vector apply(const Vector& row, float scale) const {
        Vector result;
#pragma unroll
        for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
            float values[Value::PER_WORD];
            Value::unpack(row.words[word], values);
#pragma unroll
            for (uint32 i = 0; i < Value::PER_WORD; ++i) {
                const uint32 column = word * Value::PER_WORD + i;
                const uint32 weight_word = column / Weight::PER_WORD;
                float weights[Weight::PER_WORD];
                Weight::unpack(vectors[weight_word / VECTOR_WORDS].words[weight_word % VECTOR_WORDS], weights);
                values[i] = values[i] * scale * weights[column % Weight::PER_WORD];
            }
            result.words[word] = Value::pack(values);
        }
        return result;
    }
};

}  // namespace lamport
