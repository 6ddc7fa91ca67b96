// The sink of rows that are summed, and go to a quantiser as they are.
//
//   residual_output = input summed over ranks, if there is a place for it
//
// The sum is rounded once, and quantised as if that were an operation of its own. The parameters are those of a norm,
// whose residual, weight and `output` there are not. Rows that are not kept in registers need a place for the sum.
#pragma once

#include "sink/block_rows.cuh"
#include "sink/quantiser.cuh"

namespace lamport {

// The vector that a thread keeps, as an `Output` takes it: there are no weights.
template <class Value>
struct SumVector {
    Vector sum;

    // NaN if one of the values is.
    __device__ __forceinline__ float largest_product() const { return magnitude<Value>(largest_magnitude(sum)); }
};

// `Output` is one of ResidualRmsNorm. Its `scale` is 1.
template <class Value, uint32 vectors, template <class, uint32> class Output>
class SumRows : Output<Value, vectors>, public BlockRows<Value, vectors, typename Output<Value, vectors>::Parameters> {
    using Rows = BlockRows<Value, vectors, typename Output<Value, vectors>::Parameters>;
    using Rows::parameters_;
    static_assert(vectors <= 1, "a thread keeps one vector at most");

public:
    using Parameters = typename Output<Value, vectors>::Parameters;
    using Shared = typename Output<Value, vectors>::Shared;
    using Rows::has;
    using Rows::VECTORS;

    // The part of the block that speaks.
    static __device__ __forceinline__ void speak(const Parameters& parameters) {
        const uint64 bytes = uint64{parameters.tokens} * parameters.row_vectors * VECTOR_BYTES;
        lamport::speak(parameters.group, parameters.region_bytes, 2 * bytes, [&] {
            Output<Value, vectors>::poison(parameters, bytes);
            if (parameters.residual_output != 0) {
                fill_with_nan(parameters.residual_output, bytes);
            }
        });
    }

    // All threads of the block call it. `shared` is theirs.
    __device__ __forceinline__ SumRows(const Parameters& parameters, Shared& shared)
        : Output<Value, vectors>(parameters), Rows(parameters), shared_(shared) {}

    static __device__ __forceinline__ constexpr bool takes_results() { return true; }

    __device__ __forceinline__ void load_residual(Column) {}
    __device__ __forceinline__ void load_weights(Column) {}

    // The sum of all ranks, rounded.
    template <uint32 capacity>
    __device__ __forceinline__ Vector add_up(const RankVectors<capacity>& of_ranks, Column) const {
        float sum[PER_VECTOR<Value>];
        sum_in_rank_order<Value>(of_ranks, parameters_.group, sum);
        return round_sum<Value>(sum);
    }

    // Takes what `add_up` returned, here or on the row's owner.
    __device__ __forceinline__ void take(Column column, const Vector& vector) {
        Rows::store_if(parameters_.residual_output != 0, parameters_.residual_output, column, vector);
        if constexpr (vectors > 0) {
            vector_.sum = vector;
            Output<Value, vectors>::take(parameters_, has(column), vector_);
        }
    }

    // Quantises the row, of which every vector was taken. All threads of the block call it.
    __device__ __forceinline__ void finish() {
        // Lanes leave the polling at different times.
        __syncwarp();
        Output<Value, vectors>::share(parameters_, shared_);
        __syncthreads();
        Output<Value, vectors>::put(*this, parameters_, shared_, 1.0f);
    }

    // Vector `column` of the sum. The name is that of ResidualRmsNorm.
    __device__ __forceinline__ Vector normalised(Column column, float) const {
        if constexpr (vectors > 0) {
            return vector_.sum;
        } else {
            return Rows::load(parameters_.residual_output, column);
        }
    }

private:
    Shared& shared_;
    // Of the present row, where it is kept.
    SumVector<Value> vector_;
};

}  // namespace lamport
