// The source of a norm: the rows of a tensor.
#pragma once

#include "device/column.cuh"
#include "device/keep.cuh"
#include "device/types.cuh"
#include "device/vector.cuh"

namespace lamport {

// What a rank contributes are the rows of a tensor of its own. The sink knows which row a block has.
class TensorRows {
public:
    template <class Parameters>
    __device__ __forceinline__ explicit TensorRows(const Parameters& parameters) : input_(parameters.input) {}

    // The thread's first vector, before the wait for prior grids: only its load is left to do then.
    template <class Rows>
    __device__ __forceinline__ Address prepare(const Rows& rows) const {
        return keep(rows.address(input_, threadIdx.x));
    }

    // All of the thread's vectors that it keeps, or the first, behind the wait.
    template <class Rows, uint32 count>
    __device__ __forceinline__ void load_prepared(const Rows& rows, Address prepared, Vector (&vectors)[count]) const {
        vectors[0] = rows.load_at(prepared, threadIdx.x);
        if constexpr (count > 1) {
            rows.for_each_column([&](Column column) {
                if (column.place > 0) {
                    vectors[column.place] = load(rows, column);
                }
            });
        }
    }

    // All of the thread's vectors of the present row, where it keeps them.
    template <class Rows, uint32 count>
    __device__ __forceinline__ void load_all(const Rows& rows, Vector (&vectors)[count]) const {
        rows.for_each_column([&](Column column) { vectors[column.place] = load(rows, column); });
    }

    // Vector `column` of the present row.
    template <class Rows>
    __device__ __forceinline__ Vector load(const Rows& rows, uint32 column) const {
        return rows.load(input_, column);
    }

private:
    // Read from the parameters where it is needed.
    const Address& input_;
};

}  // namespace lamport
