// How a thread names the vectors of a row.
#pragma once

#include "device/types.cuh"

namespace lamport {

// A vector of a row, by its number in the row.
struct Column {
    __device__ __forceinline__ operator uint32() const { return number; }

    uint32 number;
    // Its place among the vectors that the thread keeps in registers. 0 if it keeps none.
    uint32 place;
};

// How many vectors of a row are at hand at a time, of those that a thread keeps or, if it keeps none, of all.
template <uint32 vectors>
constexpr uint32 KEPT = vectors == 0 ? 1 : vectors;

}  // namespace lamport
