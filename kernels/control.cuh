// The control words: which slot an operation uses, what the operation before left to clear, and moving on.
//
// Order within a kernel: one thread per block reads the control words and hands them to the block through shared memory
// and a barrier; after that barrier one thread arrives; the last block to arrive writes the next operation's control
// words. A block's read is complete before it arrives, since the value read went through shared memory and the barrier
// first, so no block can see the next operation's words. Every kernel counts its own grid and leaves the counter at 0,
// so kernels of any grid size follow each other on one workspace.
#pragma once

#include "group.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"

namespace lamport {

// The control words as an operation uses them.
struct Control {
    // Bytes from a block's start to this operation's slot, on every rank.
    uint64 slot_offset;
    // Bytes from the block's start to the slot of the operation before.
    uint64 previous_offset;
    // Vectors that the operation before used there, all ranks' regions together.
    uint32 previous_vectors;
    uint32 slot;
};

// Call after wait_for_prior_grids: the operation before writes what this reads.
__device__ __forceinline__ Control read_control(const Group& group) {
    const uint32 slot = ptx::load_device(group.counters + SLOT_INDEX * sizeof(uint32));
    const uint64 extent = ptx::load_device_long(group.extents + CLEAR_EXTENT * sizeof(uint64));
    const uint32 previous = slot == 0 ? SLOTS - 1 : slot - 1;
    const uint64 bounded = extent < group.comm_size ? extent : group.comm_size;
    return Control{slot * group.comm_size, previous * group.comm_size, static_cast<uint32>(bounded / VECTOR_BYTES),
                   slot};
}

// Puts the sentinel back over the peers' regions of the slot before. The own region was never written. `thread` counts
// the `threads` of the whole grid that share the work. To be called after the push: its place is while data travels.
__device__ __forceinline__ void clear_previous_slot(const Group& group, const Control& control, uint32 thread,
                                                    uint32 threads) {
    const uint32 region = control.previous_vectors / group.world_size;
    const uint32 own_begin = group.rank * region;
    const uint32 to_clear = control.previous_vectors - region;
    const Address slot = group.own + control.previous_offset;
    for (uint32 index = thread; index < to_clear; index += threads) {
        const uint32 vector = index < own_begin ? index : index + region;
        ptx::store_system(slot + uint64{vector} * VECTOR_BYTES, empty_vector());
    }
}

// One thread per block calls it, after the barrier that published the control words. Returns whether its block is the
// last. The counter's answer takes as long as any load, so do other work before using it.
__device__ __forceinline__ bool arrive(const Group& group) {
    return ptx::add_device(group.counters + ARRIVAL_COUNTER * sizeof(uint32), 1) == gridDim.x - 1;
}

// The last block's arriving thread moves on to the next slot. `region_bytes` is this operation's.
__device__ __forceinline__ void rotate(const Group& group, const Control& control, uint32 region_bytes) {
    const uint32 next = control.slot == SLOTS - 1 ? 0 : control.slot + 1;
    ptx::store_device(group.counters + SLOT_INDEX * sizeof(uint32), next);
    ptx::store_device_long(group.extents + CLEAR_EXTENT * sizeof(uint64), uint64{group.world_size} * region_bytes);
    ptx::store_device(group.counters + ARRIVAL_COUNTER * sizeof(uint32), 0);
}

}  // namespace lamport
