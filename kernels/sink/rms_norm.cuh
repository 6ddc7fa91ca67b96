// RMSNorm of a row that a block works on:
//
//   y = x * rsqrt(sum of x^2 / columns + epsilon) * (weight + weight_bias)
//
// in float32, rounded once.
#pragma once

#include "device/numeric.cuh"
#include "device/ptx.cuh"
#include "device/reduce.cuh"

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

// One vector of a row and its weights. Where it is kept in registers, both are taken in before the row's factor is
// known, and made ready while others still wait: after it, all warps of a block are at work at once. (The products are
// not made before: weighted first, large values would overflow, and small ones vanish, that the factor brings back.)
template <class Value>
class NormVector {
public:
    // Loads the weights of the row's vector `column`.
    __device__ __forceinline__ void load_weights(const RmsNorm& norm, uint32 column) {
        const uint64 first = uint64{column} * PER_VECTOR<Value>;
        if (norm.has_float32_weight != 0) {
            load_weights<Float32>(norm.weight + first * sizeof(float), norm.weight_bias);
        } else {
            load_weights<Value>(norm.weight + first * (sizeof(uint32) / Value::PER_WORD), norm.weight_bias);
        }
    }

    // Takes in the row's vector.
    __device__ __forceinline__ void take(const Vector& row) { unpack<Value>(row, values_); }

    // The vector of the result, rounded once, after both of the above.
    __device__ __forceinline__ Vector scaled(float scale) const {
        Vector result;
#pragma unroll
        for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
            float values[Value::PER_WORD];
#pragma unroll
            for (uint32 i = 0; i < Value::PER_WORD; ++i) {
                const uint32 index = word * Value::PER_WORD + i;
                values[i] = values_[index] * scale * weights_[index];
            }
            result.words[word] = Value::pack(values);
        }
        return result;
    }

    // The largest magnitude of a value times its weight, before the row's factor. NaN if one is.
    __device__ __forceinline__ float largest_product() const {
        float largest = 0.0f;
#pragma unroll
        for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
            largest = ptx::larger_or_nan(largest, fabsf(values_[i] * weights_[i]));
        }
        return largest;
    }

    __device__ __forceinline__ float value(uint32 index) const { return values_[index]; }

    __device__ __forceinline__ float weight(uint32 index) const { return weights_[index]; }

    // Instead of loading them.
    __device__ __forceinline__ void fill_weights(float weight) {
#pragma unroll
        for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
            weights_[i] = weight;
        }
    }

private:
    template <class Weight>
    __device__ __forceinline__ void load_weights(Address begin, float bias) {
#pragma unroll
        for (uint32 vector = 0; vector < PER_VECTOR<Value> / PER_VECTOR<Weight>; ++vector) {
            float weights[PER_VECTOR<Weight>];
            unpack<Weight>(ptx::load_weight(begin + vector * VECTOR_BYTES), weights);
#pragma unroll
            for (uint32 i = 0; i < PER_VECTOR<Weight>; ++i) {
                weights_[vector * PER_VECTOR<Weight> + i] = weights[i] + bias;
            }
        }
    }

    // With the bias.
    float weights_[PER_VECTOR<Value>];
    float values_[PER_VECTOR<Value>];
};

// Makes the entries of warps that do not exist 0, as the sum wants it, and puts beside them what the factor needs: read
// together with them, where a parameter would be loaded after them.
__device__ __forceinline__ void pad(const RmsNorm& norm, WarpPartials& partials) {
    if (threadIdx.x == 0) {
        partials.values[MAX_WARPS] = norm.inverse_count;
        partials.values[MAX_WARPS + 1] = norm.epsilon;
    }
    if (threadIdx.x / WARP_THREADS == 0 && threadIdx.x >= blockDim.x / WARP_THREADS) {
        partials.values[threadIdx.x] = 0.0f;
    }
}

// The sum over a block of each thread's `value`, and the `terms` beside the partials. All threads of the block call it.
// `partials` is theirs from one barrier before to one after.
__device__ __forceinline__ float block_sum(float value, WarpPartials& partials, float2& terms) {
    float sums[1] = {value};
    const float sum = warp_sums(sums);
    if (threadIdx.x % WARP_THREADS == 0) {
        partials.values[threadIdx.x / WARP_THREADS] = sum;
    }
    __syncthreads();
    terms = partials.padding();
    return partials.sum(blockDim.x / WARP_THREADS);
}

// The factor of a row, out of each thread's sum of squares. Likewise.
__device__ __forceinline__ float row_scale(float squares, WarpPartials& partials) {
    float2 terms;
    const float total = block_sum(squares, partials, terms);
    return rsqrtf(fmaf(total, terms.x, terms.y));
}

}  // namespace lamport
