// What a kernel leaves behind that gave up waiting: a mark in device memory that the other blocks look for while they
// wait, and that every later operation reads with its control words.
//
// A rank that has failed sends nothing more. What its operations, those of a graph or those that are enqueued already,
// make of results that never came must not reach a peer that was only late: such a peer gets what was sent before, and
// then misses this rank.
#pragma once

#include "group.cuh"
#include "ptx.cuh"

namespace lamport {

// One of the CONTROL_COPIES copies: the slot's index, the region to clear, and the mark, of 32 bits each. What moves on
// to the next slot writes the first two only, so that the mark stays.
__device__ __forceinline__ Address control_copy(const Group& group, uint32 copy) {
    return group.control_copies + copy * CONTROL_COPY_BYTES;
}

constexpr uint32 MARK_OFFSET = 2 * sizeof(uint32);

__device__ __forceinline__ bool has_failed(const Group& group) {
    return ptx::load_device(control_copy(group, 0) + MARK_OFFSET) != 0;
}

// Leaves the mark.
__device__ __forceinline__ void fail(const Group& group) {
#pragma unroll 1
    for (uint32 copy = 0; copy < CONTROL_COPIES; ++copy) {
        ptx::store_device(control_copy(group, copy) + MARK_OFFSET, 1);
    }
}

}  // namespace lamport
