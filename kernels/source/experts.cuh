// The source of a layer of experts: finalisation. A token's row is the weighted sum of rows that the experts of this
// rank made of it, which lie elsewhere, and of a shared expert's row:
//
//   row = sum over j of weight[token, j] * expert_rows[index[token, j]] + shared_rows[token]
//
// in float32, each product and each sum rounded, j ascending from 0.0, and rounded once to the element type: what an
// operation of its own would have left for a sum of rows.
#pragma once

#include "device/keep.cuh"
#include "device/numeric.cuh"
#include "device/ptx.cuh"
#include "device/types.cuh"
#include "device/vector.cuh"
#include "protocol/sentinel.cuh"
#include "protocol/vector_routes.cuh"

namespace lamport {

struct Experts {
    Address rows;
    // int32, `per_token` of each token: the number of a row, or -1 for none. Any other number stands for a row of NaN,
    // and nothing is read for it.
    Address index;
    // As many.
    Address weights;
    // One row for each token; 0 if there are none.
    Address shared_rows;
    // How many rows the experts made.
    uint32 row_count;
    uint32 per_token;
    // 1 if the weights are float32, 0 if they have the dtype of the rows.
    uint32 has_float32_weights;
    uint32 reserved;
};

ASSERT_LAYOUT_OF_Experts(Experts);

class ExpertRows {
public:
    template <class Parameters>
    __device__ __forceinline__ explicit ExpertRows(const Parameters& parameters)
        : experts_(parameters.experts), row_vectors_(parameters.row_vectors) {}

    // Where the entries of the block's first row begin, before the wait for prior grids.
    template <class Rows>
    __device__ __forceinline__ uint64 prepare(const Rows& rows) const {
        return keep(first_entry(rows));
    }

    // All of the thread's vectors that it keeps, or the first, behind the wait.
    template <class Rows, uint32 count>
    __device__ __forceinline__ void load_prepared(const Rows& rows, uint64 prepared, Vector (&vectors)[count]) const {
        finalise(rows, threadIdx.x, prepared, vectors);
    }

    // All of the thread's vectors of the present row, where it keeps them.
    template <class Rows, uint32 count>
    __device__ __forceinline__ void load_all(const Rows& rows, Vector (&vectors)[count]) const {
        finalise(rows, threadIdx.x, first_entry(rows), vectors);
    }

    // Vector `column` of the present row.
    template <class Rows>
    __device__ __forceinline__ Vector load(const Rows& rows, uint32 column) const {
        Vector vector[1];
        finalise(rows, column, first_entry(rows), vector);
        return vector[0];
    }

private:
    // Experts whose vectors are in flight together.
    enum : uint32 { AT_ONCE = 8 };
    enum : uint32 { NONE = ~0u };

    // Of the present row, among all indices and weights.
    template <class Rows>
    __device__ __forceinline__ uint64 first_entry(const Rows& rows) const {
        return uint64{rows.token()} * experts_.per_token;
    }

    // Makes vectors `column`, `column + blockDim.x` and so on of the row whose entries begin at `first`.
    template <class Rows, uint32 count>
    __device__ __forceinline__ void finalise(const Rows& rows, uint32 column, uint64 first,
                                             Vector (&result)[count]) const {
        using Value = typename Rows::Element;
        float sums[count][PER_VECTOR<Value>] = {};
        // A block that has no row has no indices.
        const uint32 per_token = rows.has(column) ? experts_.per_token : 0;
#pragma unroll 1
        for (uint32 done = 0; done < per_token; done += AT_ONCE) {
            add_some(rows, column, first + done, per_token - done, sums);
        }
#pragma unroll
        for (uint32 place = 0; place < count; ++place) {
            if (experts_.shared_rows != 0) {
                float shared[PER_VECTOR<Value>];
                unpack<Value>(rows.load(experts_.shared_rows, column + place * blockDim.x), shared);
#pragma unroll
                for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
                    sums[place][i] += shared[i];
                }
            }
            result[place] = round_sum<Value>(sums[place]);
        }
    }

    // Adds the vectors of the experts from entry `first` on: of `left`, AT_ONCE at most.
    template <class Rows, class Value = typename Rows::Element, uint32 count>
    __device__ __forceinline__ void add_some(const Rows& rows, uint32 column, uint64 first, uint32 left,
                                             float (&sums)[count][PER_VECTOR<Value>]) const {
        uint32 index[AT_ONCE];
#pragma unroll
        for (uint32 i = 0; i < AT_ONCE; ++i) {
            index[i] = ptx::load_weight_word(experts_.index + (first + i) * sizeof(uint32), i < left, NONE);
        }
        float weights[AT_ONCE];
        load_weights<Value>(first, left, weights);
        Vector vectors[AT_ONCE][count];
#pragma unroll
        for (uint32 i = 0; i < AT_ONCE; ++i) {
            const Address row = experts_.rows + uint64{index[i]} * row_vectors_ * VECTOR_BYTES;
#pragma unroll
            for (uint32 place = 0; place < count; ++place) {
                const uint32 number = column + place * blockDim.x;
                vectors[i][place] = Vector{{0, 0, 0, 0}};
                // As unsigned numbers, the negative ones are too large, too.
                ptx::load_input_if(index[i] < experts_.row_count && (place == 0 || rows.has(number)),
                                   row + uint64{number} * VECTOR_BYTES, vectors[i][place]);
            }
        }
#pragma unroll
        for (uint32 i = 0; i < AT_ONCE; ++i) {
            // A weight of no row counts for nothing, be it NaN. A number of no row counts for NaN.
            const float without = index[i] == NONE ? 0.0f : __uint_as_float(NAN_WORD);
            const float weight = index[i] < experts_.row_count ? weights[i] : without;
#pragma unroll
            for (uint32 place = 0; place < count; ++place) {
                float values[PER_VECTOR<Value>];
                unpack<Value>(vectors[i][place], values);
#pragma unroll
                for (uint32 at = 0; at < PER_VECTOR<Value>; ++at) {
                    sums[place][at] += __fmul_rn(values[at], weight);
                }
            }
        }
    }

    // Those of entries `first` and so on: of `left`.
    template <class Value, uint32 count>
    __device__ __forceinline__ void load_weights(uint64 first, uint32 left, float (&weights)[count]) const {
        if (Value::PER_WORD == 1 || experts_.has_float32_weights != 0) {
#pragma unroll
            for (uint32 i = 0; i < count; ++i) {
                const Address weight = experts_.weights + (first + i) * sizeof(float);
                weights[i] = __uint_as_float(ptx::load_weight_word(weight, i < left));
            }
        } else {
#pragma unroll
            for (uint32 i = 0; i < count; ++i) {
                const Address weight = experts_.weights + (first + i) * (sizeof(uint32) / Value::PER_WORD);
                float values[Value::PER_WORD];
                Value::unpack(ptx::load_input_half(weight, i < left), values);
                weights[i] = values[0];
            }
        }
    }

    // Read from the parameters where it is needed.
    const Experts& experts_;
    const uint32& row_vectors_;
};

}  // namespace lamport
