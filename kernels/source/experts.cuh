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

    // Where the indices of the block's first row begin, before the wait for prior grids.
    template <class Rows>
    __device__ __forceinline__ uint64 prepare(const Rows& rows) const {
        return keep(first_entry(rows));
    }

    // The thread's first vector, behind the wait.
    template <class Rows>
    __device__ __forceinline__ Vector load_prepared(const Rows& rows, uint64 prepared) const {
        return finalised(rows, threadIdx.x, prepared);
    }

    // Vector `column` of the present row.
    template <class Rows>
    __device__ __forceinline__ Vector load(const Rows& rows, uint32 column) const {
        return finalised(rows, column, first_entry(rows));
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

    template <class Rows>
    __device__ __forceinline__ Vector finalised(const Rows& rows, uint32 column, uint64 first) const {
        using Value = typename Rows::Element;
        float sum[PER_VECTOR<Value>] = {};
        // A block that has no row has no indices.
        const uint32 count = rows.has(column) ? experts_.per_token : 0;
#pragma unroll 1
        for (uint32 done = 0; done < count; done += AT_ONCE) {
            add_some<Value>(first + done, min(count - done, uint32{AT_ONCE}), column, sum);
        }
        if (experts_.shared_rows != 0) {
            float shared[PER_VECTOR<Value>];
            unpack<Value>(rows.load(experts_.shared_rows, column), shared);
#pragma unroll
            for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
                sum[i] += shared[i];
            }
        }
        return round_and_scrub<Value>(sum);
    }

    // Adds the vectors of the `count` experts from entry `first` on, AT_ONCE at most.
    template <class Value>
    __device__ __forceinline__ void add_some(uint64 first, uint32 count, uint32 column,
                                             float (&sum)[PER_VECTOR<Value>]) const {
        // One more load of the last costs less than a branch.
        const auto entry = [&](uint32 i) { return first + min(i, count - 1); };
        uint32 index[AT_ONCE];
#pragma unroll
        for (uint32 i = 0; i < AT_ONCE; ++i) {
            index[i] = ptx::load_weight_word(experts_.index + entry(i) * sizeof(uint32));
        }
        Vector vectors[AT_ONCE];
        float weights[AT_ONCE];
#pragma unroll
        for (uint32 i = 0; i < AT_ONCE; ++i) {
            const bool is_none = i >= count || index[i] == NONE;
            vectors[i] = is_none ? Vector{{0, 0, 0, 0}} : nan_vector();
            const uint64 place = uint64{index[i]} * row_vectors_ + column;
            // As unsigned numbers, the other negative ones are too large, too.
            ptx::load_input_if(!is_none && index[i] < experts_.row_count, experts_.rows + place * VECTOR_BYTES,
                               vectors[i]);
            // Nothing of the weight of nothing, be it NaN.
            weights[i] = is_none ? 0.0f : load_weight<Value>(entry(i));
        }
#pragma unroll
        for (uint32 i = 0; i < AT_ONCE; ++i) {
            float values[PER_VECTOR<Value>];
            unpack<Value>(vectors[i], values);
#pragma unroll
            for (uint32 at = 0; at < PER_VECTOR<Value>; ++at) {
                sum[at] += __fmul_rn(values[at], weights[i]);
            }
        }
    }

    template <class Value>
    __device__ __forceinline__ float load_weight(uint64 entry) const {
        if (Value::PER_WORD == 1 || experts_.has_float32_weights != 0) {
            return __uint_as_float(ptx::load_weight_word(experts_.weights + entry * sizeof(float)));
        }
        float values[Value::PER_WORD];
        Value::unpack(ptx::load_input_half(experts_.weights + entry * (sizeof(uint32) / Value::PER_WORD)), values);
        return values[0];
    }

    // Read from the parameters where it is needed.
    const Experts& experts_;
    const uint32& row_vectors_;
};

}  // namespace lamport
