// What quantisers of normalised rows have in common. The rows are normalised and rounded, stored if they are asked
// for, and then quantised, as if that were an operation of its own.
#pragma once

#include "device/numeric.cuh"
#include "device/ptx.cuh"
#include "device/reduce.cuh"
#include "protocol/control.cuh"
#include "sink/residual_rms_norm.cuh"

namespace lamport {

// `output` is 0 where the normalised rows are not asked for.
struct AllReduceRmsNormQuantParameters : AllReduceRmsNormParameters {
    // Where the quantised rows go.
    Address quantised;
    // Where their scales go, or, if they are given, are.
    Address scales;
    // FP8_STATIC and so on.
    uint32 format;
    // Scales of a row.
    uint32 row_scales;
    // From a scale to the same one of the next row, and from one to the next of its row: in scales.
    uint32 scale_row_stride;
    uint32 scale_stride;
};

ASSERT_LAYOUT_OF_AllReduceRmsNormQuant(AllReduceRmsNormQuantParameters);

// The largest magnitude of a vector's 16-bit values, as bits: those of a NaN are above all others.
__device__ __forceinline__ uint32 largest_magnitude(const Vector& vector) {
    constexpr uint32 MAGNITUDES = 0x7fff7fffu;
    uint32 halves = vector.words[0] & MAGNITUDES;
#pragma unroll
    for (uint32 word = 1; word < VECTOR_WORDS; ++word) {
        halves = ptx::larger_halves(halves, vector.words[word] & MAGNITUDES);
    }
    return max(halves & 0xffffu, halves >> 16);
}

// That of a vector which is there only if `has`. Without a branch, in front of which nothing of it would be computed.
__device__ __forceinline__ uint32 largest_magnitude_if(bool has, const Vector& vector) {
    return largest_magnitude(vector) & (has ? 0xffffu : 0u);
}

// Of those bits.
template <class Value>
__device__ __forceinline__ float magnitude(uint32 bits) {
    float values[Value::PER_WORD];
    Value::unpack(bits, values);
    return values[0];
}

// Stores a vector's values as FP8 e4m3, as `scaled` makes them: rounded to nearest even, and those beyond the largest
// as that.
template <class Rows, class Scaled, class Value = typename Rows::Element>
__device__ __forceinline__ void store_fp8(const Rows& rows, const AllReduceRmsNormQuantParameters& parameters,
                                          uint32 column, const Vector& vector, Scaled scaled) {
    static_assert(PER_VECTOR<Value> == 8, "quantised rows are of 16-bit values");
    float values[PER_VECTOR<Value>];
    unpack<Value>(vector, values);
#pragma unroll
    for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
        values[i] = scaled(values[i]);
    }
    const uint32 low = ptx::pack_e4m3(values[0], values[1]) | ptx::pack_e4m3(values[2], values[3]) << 16;
    const uint32 high = ptx::pack_e4m3(values[4], values[5]) | ptx::pack_e4m3(values[6], values[7]) << 16;
    const uint64 place = uint64{rows.token()} * parameters.row_vectors + column;
    ptx::store_output_pair_if(rows.has(column), parameters.quantised + place * (VECTOR_BYTES / 2), low, high);
}

// Stores the vector as it is, if the normalised rows are asked for.
template <class Rows>
__device__ __forceinline__ void store_normalised(const Rows& rows, const AllReduceRmsNormQuantParameters& parameters,
                                                 uint32 column, const Vector& vector) {
    rows.store_if(parameters.output != 0, parameters.output, column, vector);
}

// Where scale `index` of a row is.
__device__ __forceinline__ Address scale_place(const AllReduceRmsNormQuantParameters& parameters, uint32 token,
                                               uint32 index) {
    const uint64 place = uint64{token} * parameters.scale_row_stride + uint64{index} * parameters.scale_stride;
    return parameters.scales + place * sizeof(float);
}

}  // namespace lamport
