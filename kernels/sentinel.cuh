// The sentinel: the one word that no payload may contain. It means "nothing has arrived here yet".
//
// Every comparison is on bits. Compared as floats, -0.0 would equal +0.0, and with flush-to-zero every negative
// subnormal too, and a poll would never end.
#pragma once

#include "constants.cuh"
#include "types.cuh"

namespace lamport {

// Four 32-bit words that travel in one access. The memory model makes the single word indivisible, not the vector, so
// each word is scrubbed and awaited on its own.
struct alignas(VECTOR_BYTES) Vector {
    uint32 words[VECTOR_WORDS];
};

// What a slot holds where nothing has arrived.
__device__ __forceinline__ Vector empty_vector() { return Vector{{SENTINEL, SENTINEL, SENTINEL, SENTINEL}}; }

// Rewrites the one word that must not travel: -0.0f to +0.0f, or the 16-bit pair (+0, -0) to (+0, +0).
__device__ __forceinline__ uint32 scrub(uint32 word) { return word == SENTINEL ? 0u : word; }

__device__ __forceinline__ Vector scrub(const Vector& vector) {
    return Vector{
        {scrub(vector.words[0]), scrub(vector.words[1]), scrub(vector.words[2]), scrub(vector.words[3])}};
}

__device__ __forceinline__ bool has_arrived(uint32 word) { return word != SENTINEL; }

// Whether all four words have arrived; they do so in no order.
__device__ __forceinline__ bool has_arrived(const Vector& vector) {
    // `&` and not `&&`: four comparisons and no branch.
    return has_arrived(vector.words[0]) & has_arrived(vector.words[1]) & has_arrived(vector.words[2]) &
           has_arrived(vector.words[3]);
}

}  // namespace lamport
