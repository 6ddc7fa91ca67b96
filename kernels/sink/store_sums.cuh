// The sink of rows that are summed, and stored as they are.
//
//   output = rows summed over ranks
//
// The parameters are those of a norm, of which there are no other tensors.
#pragma once

#include "sink/residual_rms_norm.cuh"

namespace lamport {

template <class Value, bool held>
class StoreSums : public BlockRows<Value, held, AllReduceRmsNormParameters> {
    using Rows = BlockRows<Value, held, AllReduceRmsNormParameters>;
    using Rows::parameters_;

public:
    using Parameters = AllReduceRmsNormParameters;
    static constexpr bool HELD = held;

    // Of a block.
    struct Shared {};

    // The part of the block that speaks.
    static __device__ __forceinline__ void speak(const Parameters& parameters) {
        const uint64 bytes = uint64{parameters.tokens} * parameters.row_vectors * VECTOR_BYTES;
        lamport::speak(parameters.group, parameters.region_bytes, bytes,
                       [&] { fill_with_nan(parameters.output, bytes); });
    }

    __device__ __forceinline__ StoreSums(const Parameters& parameters, Shared&) : Rows(parameters) {}

    __device__ __forceinline__ void load_residual(uint32) {}
    __device__ __forceinline__ void load_weights(uint32) {}

    // The sum of all ranks, rounded and scrubbed.
    template <uint32 capacity>
    __device__ __forceinline__ Vector add_up(const RankVectors<capacity>& vectors) const {
        float sum[PER_VECTOR<Value>];
        sum_in_rank_order<Value>(vectors, parameters_.group, sum);
        return round_and_scrub<Value>(sum);
    }

    // Stores what `add_up` returned, here or on the row's owner.
    __device__ __forceinline__ void take(uint32 column, const Vector& vector) const {
        Rows::store(parameters_.output, column, vector);
    }

    __device__ __forceinline__ void finish() const {}
};

}  // namespace lamport
