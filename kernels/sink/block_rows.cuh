// A block's way through rows.
//
// A block has a row at a time. A thread of it keeps `vectors` vectors of the row in registers: every `blockDim.x`-th.
// Where `vectors` is 0, rows may be of any width: a thread has however many there are, and reads back what it stored.
#pragma once

#include "device/column.cuh"
#include "device/keep.cuh"
#include "device/numeric.cuh"
#include "device/ptx.cuh"
#include "protocol/control.cuh"

namespace lamport {

// What the sinks of rows are built on. `Parameters` say how many rows there are, and how many vectors each has.
template <class Value, uint32 vectors, class Parameters>
class BlockRows {
public:
    using Element = Value;
    static constexpr uint32 VECTORS = vectors;

    __device__ __forceinline__ explicit BlockRows(const Parameters& parameters)
        : parameters_(parameters),
          token_(data_block()),
          row_vectors_(keep(token_ < parameters.tokens ? parameters.row_vectors : 0)),
          offset_(keep(offset(token_, threadIdx.x))) {}

    __device__ __forceinline__ uint32 token() const { return token_; }

    // Moves to the block's next row. False if there is none.
    __device__ __forceinline__ bool advance() {
        token_ += data_blocks();
        offset_ = offset(token_, threadIdx.x);
        return token_ < parameters_.tokens;
    }

    // Calls `work` with each of this thread's vectors of a row. A thread that keeps them has as many as any other, be
    // they beyond the end: loads and stores mind that.
    template <class Work>
    __device__ __forceinline__ void for_each_column(Work work) const {
        if constexpr (vectors == 0) {
            for (uint32 column = threadIdx.x; column < row_vectors_; column += blockDim.x) {
                work(Column{column, 0});
            }
        } else {
#pragma unroll
            for (uint32 place = 0; place < vectors; ++place) {
                work(Column{place == 0 ? threadIdx.x : threadIdx.x + place * blockDim.x, place});
            }
        }
    }

    // Likewise, but a warp's threads call `work` as often as each other, be it with a number beyond the end.
    template <class Work>
    __device__ __forceinline__ void for_each_column_together(Work work) const {
        if constexpr (vectors == 0) {
            for (uint32 first = 0; first < row_vectors_; first += blockDim.x) {
                work(Column{first + threadIdx.x, 0});
            }
        } else {
            for_each_column(work);
        }
    }

    __device__ __forceinline__ bool has(uint32 column) const { return column < row_vectors_; }

    // `column`, or the row's first if that is beyond the end.
    __device__ __forceinline__ Column within(Column column) const {
        return Column{has(column) ? column.number : 0, column.place};
    }

    // Vector `column` of the present row of a tensor.
    __device__ __forceinline__ Vector load(Address tensor, uint32 column) const {
        return load_at(address(tensor, column), column);
    }

    // Likewise, of which the `address` is known.
    __device__ __forceinline__ Vector load_at(Address address, uint32 column) const {
        Vector vector{{0, 0, 0, 0}};
        ptx::load_input_if(has(column), address, vector);
        return vector;
    }

    // Where that vector is, if there is one.
    __device__ __forceinline__ Address address(Address tensor, uint32 column) const {
        if constexpr (vectors == 0) {
            return tensor + offset(token_, column);
        } else if constexpr (vectors == 1) {
            return tensor + offset_;
        } else {
            return tensor + offset_ + uint64{column - threadIdx.x} * VECTOR_BYTES;
        }
    }

    __device__ __forceinline__ void store(Address tensor, uint32 column, const Vector& vector) const {
        ptx::store_output_if(has(column), address(tensor, column), vector);
    }

    __device__ __forceinline__ void store_if(bool condition, Address tensor, uint32 column,
                                             const Vector& vector) const {
        ptx::store_output_if(condition && has(column), address(tensor, column), vector);
    }

protected:
    const Parameters& parameters_;

private:
    __device__ __forceinline__ uint64 offset(uint32 token, uint32 column) const {
        return (uint64{token} * parameters_.row_vectors + column) * VECTOR_BYTES;
    }

    uint32 token_;
    // Of the present row: none, in a block that has no row and only helps to clear.
    uint32 row_vectors_;
    // Of the thread's first vector of it, in bytes from a tensor's first.
    uint64 offset_;
};

}  // namespace lamport
