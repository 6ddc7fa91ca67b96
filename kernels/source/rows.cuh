// The source of a norm: rows, of which a block has one at a time.
//
// Where a row has no more vectors than the block threads, it is `held`: each thread keeps its vector in registers.
// Otherwise a thread has several, and reads back what it stored.
#pragma once

#include "constants.cuh"
#include "device/ptx.cuh"
#include "device/types.cuh"
#include "device/vector.cuh"
#include "protocol/control.cuh"

namespace lamport {

// A thread's way through the rows of its block.
template <bool held>
class BlockRows {
public:
    static constexpr bool HELD = held;

    // `row_vectors` is how many vectors each of the `tokens` rows has.
    __device__ __forceinline__ BlockRows(uint32 tokens, uint32 row_vectors)
        : token_(data_block()), row_vectors_(token_ < tokens ? row_vectors : 0) {}

    __device__ __forceinline__ uint32 token() const { return token_; }

    // Calls `work` with the numbers, within a row, of this thread's vectors. A thread of a held row is called with one,
    // be it beyond the end: loads and stores mind that.
    template <class Work>
    __device__ __forceinline__ void for_each_column(Work work) const {
        if constexpr (held) {
            work(threadIdx.x);
        } else {
            for (uint32 column = threadIdx.x; column < row_vectors_; column += blockDim.x) {
                work(column);
            }
        }
    }

    // Likewise, but all threads of a block call it as often, be it beyond the end: for work that a warp does together.
    template <class Work>
    __device__ __forceinline__ void for_each_column_together(Work work) const {
        if constexpr (held) {
            work(threadIdx.x);
        } else {
            for (uint32 first = 0; first < row_vectors_; first += blockDim.x) {
                work(first + threadIdx.x);
            }
        }
    }

    __device__ __forceinline__ bool has(uint32 column) const { return column < row_vectors_; }

protected:
    // Moves to the block's next row. False if there is none.
    __device__ __forceinline__ bool advance(uint32 tokens) {
        token_ += data_blocks();
        return token_ < tokens;
    }

private:
    uint32 token_;
    // Of the present row: none, in a block that has no row and only helps to clear.
    uint32 row_vectors_;
};

// What a rank contributes are the rows of a tensor of its own.
class TensorRows {
public:
    template <class Parameters>
    __device__ __forceinline__ explicit TensorRows(const Parameters& parameters) : input_(parameters.input) {}

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
