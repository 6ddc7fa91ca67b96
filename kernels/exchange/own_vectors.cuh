// What this rank contributes to the present row of a block, as a thread has it.
#pragma once

#include "device/column.cuh"
#include "device/vector.cuh"
#include "protocol/sentinel.cuh"

namespace lamport {

// A thread keeps its vectors of the row and loads them together, if the sink's rows are of those that are kept.
// Otherwise it has one at a time, and loads it anew whenever it needs it.
template <class Source, class Rows>
class OwnVectors {
public:
    // The block's first row, behind the wait for prior grids. `prepared` is what the source returned before it.
    template <class Prepared>
    __device__ __forceinline__ OwnVectors(const Source& source, const Rows& rows, Prepared prepared)
        : source_(source), rows_(rows) {
        source.load_prepared(rows, prepared, vectors_);
    }

    // A vector of the block's first row, when it is pushed. For every vector in turn, once.
    __device__ __forceinline__ const Vector& of_first_row(Column column) {
        if (Rows::VECTORS == 0 && column != threadIdx.x) {
            vectors_[0] = source_.load(rows_, column);
        }
        return scrubbed(column);
    }

    // A vector that was pushed, when the peers' are awaited.
    __device__ __forceinline__ Vector& pushed(Column column) {
        if constexpr (Rows::VECTORS == 0) {
            vectors_[0] = source_.load(rows_, column);
            scrubbed(column);
        }
        return vectors_[column.place];
    }

    // Moves to the block's next row.
    __device__ __forceinline__ void load_next_row() {
        if constexpr (Rows::VECTORS > 0) {
            source_.load_all(rows_, vectors_);
        }
    }

    // A vector of that row, when it is pushed. For every vector in turn, once.
    __device__ __forceinline__ const Vector& of_next_row(Column column) {
        if constexpr (Rows::VECTORS == 0) {
            vectors_[0] = source_.load(rows_, column);
        }
        return scrubbed(column);
    }

private:
    __device__ __forceinline__ const Vector& scrubbed(Column column) {
        vectors_[column.place] = scrub(vectors_[column.place]);
        return vectors_[column.place];
    }

    const Source& source_;
    const Rows& rows_;
    Vector vectors_[KEPT<Rows::VECTORS>];
};

}  // namespace lamport
