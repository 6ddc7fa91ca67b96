// Values that are to be ready in a register before the grid-dependency wait.
//
// The assembler moves a computation down to its first use if it can, behind the wait and onto the critical path, and
// reads parameters again rather than keep a register. It cannot look through a shuffle, even one from the own lane, so
// what comes out of one is computed where it stands. All lanes of a warp call these together.
#pragma once

#include "types.cuh"

namespace lamport {

__device__ __forceinline__ uint32 keep(uint32 value) { return __shfl_sync(0xffffffffu, value, threadIdx.x % 32); }

__device__ __forceinline__ uint64 keep(uint64 value) { return __shfl_sync(0xffffffffu, value, threadIdx.x % 32); }

__device__ __forceinline__ float keep(float value) { return __shfl_sync(0xffffffffu, value, threadIdx.x % 32); }

// Keeps the address of an object in shared memory.
template <class Object>
__device__ __forceinline__ Object& keep_object(Object& object) {
    const uint32 address = static_cast<uint32>(__cvta_generic_to_shared(&object));
    return *static_cast<Object*>(__cvta_shared_to_generic(keep(address)));
}

}  // namespace lamport
