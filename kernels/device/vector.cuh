// Four 32-bit words that travel in one access.
#pragma once

#include "constants.cuh"
#include "device/types.cuh"

namespace lamport {

// The memory model makes the single word indivisible, not the vector, so each word is scrubbed and awaited on its own.
struct alignas(VECTOR_BYTES) Vector {
    uint32 words[VECTOR_WORDS];
};

}  // namespace lamport
