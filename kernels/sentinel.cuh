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

// As a signed number the sentinel is the least there is. So the least word of a vector, or of several, tells whether
// any is missing: two instructions a vector, and one comparison at the end, where a chain of comparisons would take
// longer to come through.
static_assert(SENTINEL == 0x80000000u, "the least int32");

__device__ __forceinline__ int32 least_word(const Vector& vector) {
    const auto word = [&](uint32 index) { return static_cast<int32>(vector.words[index]); };
    return min(min(word(0), word(1)), min(word(2), word(3)));
}

__device__ __forceinline__ bool has_arrived(int32 least_word) { return has_arrived(static_cast<uint32>(least_word)); }

// Whether all four words have arrived; they do so in no order.
__device__ __forceinline__ bool has_arrived(const Vector& vector) { return has_arrived(least_word(vector)); }

}  // namespace lamport
