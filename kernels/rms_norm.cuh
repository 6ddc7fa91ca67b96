// RMSNorm of a row that a block works on:
//
//   y = x * rsqrt(sum of x^2 / columns + epsilon) * (weight + weight_bias)
//
// in float32, rounded once.
#pragma once

#include "numeric.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

namespace lamport {

struct RmsNorm {
    Address weight;
    // 1 / columns.
    float inverse_count;
    float epsilon;
    // Added to each weight: 0, or 1 where weights are kept as their distance from 1.
    float weight_bias;
    // 1 if the weights are float32, 0 if they have the dtype of the values.
    uint32 has_float32_weight;
};

ASSERT_LAYOUT_OF_RmsNorm(RmsNorm);

// The weights of the columns of one vector of `Value`s.
template <class Value>
class ColumnWeights {
public:
    // Of the row's vector `column`.
    __device__ __forceinline__ void load(const RmsNorm& norm, uint32 column) {
        if (norm.has_float32_weight != 0) {
#pragma unroll
            for (uint32 i = 0; i < Value::PER_WORD; ++i) {
                vectors_[i] = ptx::load_weight(norm.weight + (uint64{column} * Value::PER_WORD + i) * VECTOR_BYTES);
            }
        } else {
            vectors_[0] = ptx::load_weight(norm.weight + uint64{column} * VECTOR_BYTES);
        }
    }

    // Normalises the vector that these weights belong to.
    __device__ __forceinline__ Vector apply(const RmsNorm& norm, const Vector& row, float scale) const {
        Vector result;
#pragma unroll
        for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
            float values[Value::PER_WORD], narrow[Value::PER_WORD];
            Value::unpack(row.words[word], values);
            Value::unpack(vectors_[0].words[word], narrow);
#pragma unroll
            for (uint32 i = 0; i < Value::PER_WORD; ++i) {
                const uint32 column = word * Value::PER_WORD + i;
                const uint32 wide = vectors_[column / VECTOR_WORDS].words[column % VECTOR_WORDS];
                const float weight = norm.has_float32_weight != 0 ? __uint_as_float(wide) : narrow[i];
                values[i] = values[i] * scale * (weight + norm.weight_bias);
            }
            result.words[word] = Value::pack(values);
        }
        return result;
    }

private:
    // float32 weights fill all of it, others the first.
    Vector vectors_[Value::PER_WORD];
};

// Makes the entries of warps that do not exist 0, as the sum wants it.
__device__ __forceinline__ void pad(WarpPartials& partials) {
    if (threadIdx.x / WARP_THREADS == 0 && threadIdx.x >= blockDim.x / WARP_THREADS) {
        partials.values[threadIdx.x] = 0.0f;
    }
}

// The factor of a row, out of each thread's sum of squares. All threads of the block call it. `partials` is theirs from
// one barrier before to one after.
__device__ __forceinline__ float row_scale(const RmsNorm& norm, float squares, WarpPartials& partials) {
    float sums[1] = {squares};
    const float sum = warp_sums(sums);
    if (threadIdx.x % WARP_THREADS == 0) {
        partials.values[threadIdx.x / WARP_THREADS] = sum;
    }
    __syncthreads();
    const float total = partials.sum(blockDim.x / WARP_THREADS);
    return rsqrtf(fmaf(total, norm.inverse_count, norm.epsilon));
}

}  // namespace lamport
