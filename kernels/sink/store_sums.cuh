// The sink of rows that are summed, and stored as they are.
//
//   output = rows summed over ranks
//
// The parameters are those of a norm, of which there are no other tensors.
#pragma once

#include "sink/residual_rms_norm.cuh"

namespace lamport {

template <class Value, uint32 vectors>
class StoreSums : public BlockRows<Value, vectors, AllReduceRmsNormParameters> {
    using Rows = BlockRows<Value, vectors, AllReduceRmsNormParameters>;
    using Rows::parameters_;

public:
    using Parameters = AllReduceRmsNormParameters;
    using Rows::VECTORS;

    // Of a block.
    struct Shared {};

    // The part of the block that speaks.
    static __device__ __forceinline__ void speak(const Parameters& parameters) {
        const uint64 bytes = uint64{parameters.tokens} * parameters.row_vectors * VECTOR_BYTES;
        lamport::speak(parameters.group, parameters.region_bytes, bytes,
                       [&] { fill_with_nan(parameters.output, bytes); });
    }

    __device__ __forceinline__ StoreSums(const Parameters& parameters, Shared&) : Rows(parameters) {}

    __device__ __forceinline__ void load_residual(Column) {}
    __device__ __forceinline__ void load_weights(Column) {}

    // The sum of all ranks, rounded.
    template <uint32 capacity>
    __device__ __forceinline__ Vector add_up(const RankVectors<capacity>& of_ranks, Column) const {
        float sum[PER_VECTOR<Value>];
        sum_in_rank_order<Value>(of_ranks, parameters_.group, sum);
        return round_sum<Value>(sum);
    }

    // Stores what `add_up` returned, here or on the row's owner.
    __device__ __forceinline__ void take(Column column, const Vector& vector) const {
        Rows::store(parameters_.output, column, vector);
    }

    __device__ __forceinline__ void finish() const {}
};

}  // namespace lamport
