// The control words: which slot an operation uses, what the operation before left to clear, and moving on.
//
// Order within a kernel: one warp per block reads the control words and hands them to the block through shared memory
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

// Reads the control words. Made before the grid-dependency wait, so that only the loads are left to do after it.
class ControlReader {
public:
    __device__ __forceinline__ explicit ControlReader(const Group& group)
        : slot_index_(group.counters + SLOT_INDEX * sizeof(uint32)),
          extent_(group.extents + CLEAR_EXTENT * sizeof(uint64)),
          comm_size_(group.comm_size) {}

    // After the wait: the operation before writes what this reads.
    __device__ __forceinline__ Control read() const {
        const uint32 slot = ptx::load_device(slot_index_);
        const uint64 extent = ptx::load_device_long(extent_);
        const uint32 previous = slot == 0 ? SLOTS - 1 : slot - 1;
        const uint64 bounded = extent < comm_size_ ? extent : comm_size_;
        return Control{slot * comm_size_, previous * comm_size_, static_cast<uint32>(bounded / VECTOR_BYTES), slot};
    }

private:
    Address slot_index_;
    Address extent_;
    uint64 comm_size_;
};

// Puts the sentinel back over the peers' regions of the slot before. The own region was never written. `thread` counts
// the `threads` of the whole grid that share the work. Its place is while data travels, in warps that neither push nor
// poll.
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

// One thread per block calls it, after the barrier that published the control words; the result is for `is_last`. It
// takes as long as any load, so do other work before using it.
__device__ __forceinline__ uint32 arrive(const Group& group) {
    return ptx::count_device(group.counters + ARRIVAL_COUNTER * sizeof(uint32), gridDim.x - 1);
}

// Whether all other blocks had arrived before. The counter is 0 again then.
__device__ __forceinline__ bool is_last(uint32 arrival) { return arrival == gridDim.x - 1; }

// The last block's arriving thread moves on to the next slot. `region_bytes` is this operation's.
__device__ __forceinline__ void rotate(const Group& group, const Control& control, uint32 region_bytes) {
    const uint32 next = control.slot == SLOTS - 1 ? 0 : control.slot + 1;
    ptx::store_device(group.counters + SLOT_INDEX * sizeof(uint32), next);
    ptx::store_device_long(group.extents + CLEAR_EXTENT * sizeof(uint64), uint64{group.world_size} * region_bytes);
}

}  // namespace lamport
