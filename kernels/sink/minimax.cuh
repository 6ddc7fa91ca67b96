// MiniMax normalisation: rows of a matrix or two, an exchange of words, and rows that are scaled.
#pragma once

#include "sink/minimax_registers.cuh"
#include "sink/minimax_wide.cuh"

namespace lamport {

// `vectors` of a row, and so of each of `tokens` rows, are in a thread's registers; none, where rows may be of any
// width.
template <uint32 matrices, uint32 tokens, uint32 vectors, class Value, class Weight>
__device__ __forceinline__ void minimax(const MinimaxParameters<matrices>& parameters) {
    if constexpr (vectors == 0) {
        minimax_wide<matrices, Value, Weight>(parameters);
    } else {
        minimax_in_registers<matrices, tokens, vectors, Value, Weight>(parameters);
    }
}

}  // namespace lamport
