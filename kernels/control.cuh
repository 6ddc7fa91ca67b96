// The control words: which slot an operation uses, what the operation before left to clear, and moving on.
//
// Every warp reads them first thing, and nothing can be pushed before. One word that a thousand warps read at once is a
// queue: so there are copies, and each warp reads one of them. The table's words are kept too, for those who read them.
//
// Order within a kernel: all warps of a block read the control words; after a barrier one thread arrives; the last
// block to arrive writes the next operation's. A warp has used what it read when it comes to the barrier, whose thread
// count depends on it, so no block can see the next operation's words. Every kernel counts its own grid and leaves the
// counter at 0, so kernels of any grid size follow each other on one workspace.
#pragma once

#include "failure.cuh"
#include "group.cuh"
#include "keep.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"

namespace lamport {

// Of the barriers of a block: that of all its threads, as in __syncthreads, and the service warp's.
constexpr uint32 BLOCK_BARRIER = 0;
constexpr uint32 SERVICE_BARRIER = 1;

// The control words as an operation uses them.
struct Control {
    // Bytes from a block's start to this operation's slot, on every rank.
    uint64 slot_offset;
    // Bytes from the block's start to the slot of the operation before.
    uint64 previous_offset;
    // Vectors of one rank's region in it.
    uint32 previous_region;
    uint32 slot;
    // All ones if an operation before gave up waiting, else 0: a rank that has failed sends nothing and waits for nothing.
    uint32 failed;
};

// Reads the control words. Made before the grid-dependency wait, so that only the load is left to do after it. All
// lanes of a warp make it, and read, together.
class ControlReader {
public:
    __device__ __forceinline__ explicit ControlReader(const Group& group) : comm_size_(group.comm_size) {
        const uint32 warp = (blockIdx.x * blockDim.x + threadIdx.x) / WARP_THREADS;
        copy_ = keep(control_copy(group, warp % CONTROL_COPIES));
    }

    // After the wait: the operation before writes what this reads.
    __device__ __forceinline__ Control read() const {
        uint32 slot, previous_region, failed;
        ptx::load_device(copy_, slot, previous_region, failed);
        const uint32 previous = slot == 0 ? SLOTS - 1 : slot - 1;
        return Control{slot * comm_size_, previous * comm_size_, previous_region, slot, failed};
    }

private:
    Address copy_;
    uint64 comm_size_;
};

// Puts the sentinel back over the peers' regions of the slot before. The own region was never written. `thread` counts
// the `threads` of the whole grid that share the work. Its place is while data travels.
__device__ __forceinline__ void clear_previous_slot(const Group& group, const Control& control, uint32 thread,
                                                    uint32 threads) {
    const uint32 region = control.previous_region;
    const uint32 own_begin = group.rank * region;
    const uint32 to_clear = (group.world_size - 1) * region;
    const Address slot = group.own + control.previous_offset;
    for (uint32 index = thread; index < to_clear; index += threads) {
        const uint32 vector = index < own_begin ? index : index + region;
        ptx::store_system(slot + uint64{vector} * VECTOR_BYTES, empty_vector());
    }
}

// One thread per block calls it, after the barrier that all warps came to with the control words; the result is for
// `is_last`. It takes as long as any load, so do other work before using it.
__device__ __forceinline__ uint32 arrive(const Group& group) {
    return ptx::count_device(group.counters + ARRIVAL_COUNTER * sizeof(uint32), gridDim.x - 1);
}

// Whether all other blocks had arrived before. The counter is 0 again then.
__device__ __forceinline__ bool is_last(uint32 arrival) { return arrival == gridDim.x - 1; }

// `threads` threads of the last block, of which this is number `thread`, move on to the next slot. `region_bytes` is
// this operation's.
__device__ __forceinline__ void rotate(const Group& group, const Control& control, uint32 region_bytes, uint32 thread,
                                       uint32 threads) {
    const uint32 next = control.slot == SLOTS - 1 ? 0 : control.slot + 1;
#pragma unroll 1
    for (uint32 copy = thread; copy < CONTROL_COPIES; copy += threads) {
        ptx::store_device(control_copy(group, copy), next, region_bytes / VECTOR_BYTES);
    }
    if (thread == 0) {
        ptx::store_device(group.counters + SLOT_INDEX * sizeof(uint32), next);
        ptx::store_device_long(group.extents + CLEAR_EXTENT * sizeof(uint64), uint64{group.world_size} * region_bytes);
    }
}

// The threads of the block, by a sum that cannot be made before the control words have come: a warp whose load is still
// on its way must not count as one that has read. A warp that pushes has used them; others may not have. The slot is
// below 3 and a region below 2^31 vectors, so what is added is 0, which the compiler does not know.
//
// (It is not the barrier's number that depends on them: a kernel whose barriers are not known when it is assembled gets
// all sixteen, and a multiprocessor, which has some for each block, then holds fewer blocks.)
__device__ __forceinline__ uint32 threads_that_have_read(const Control& control) {
    return blockDim.x + ((control.slot | control.previous_region) >> 31);
}

// What goes with every operation: clears, arrives and rotates. There are two ways to do it.

// For kernels with a service warp, the block's last, which does it while the others wait for data. They call
// `control_is_used` after their first push, and do not wait there.
__device__ __forceinline__ void control_is_used(const Control& control) {
    ptx::arrive_at_barrier(SERVICE_BARRIER, threads_that_have_read(control));
}

__device__ __forceinline__ void serve(const Group& group, const Control& control, uint32 region_bytes) {
    ptx::wait_at_barrier(SERVICE_BARRIER, threads_that_have_read(control));
    const uint32 lane = threadIdx.x % WARP_THREADS;
    uint32 arrival = 0;
    if (lane == 0) {
        arrival = arrive(group);
    }
    clear_previous_slot(group, control, blockIdx.x * WARP_THREADS + lane, gridDim.x * WARP_THREADS);
    if (is_last(__shfl_sync(0xffffffffu, arrival, 0))) {
        rotate(group, control, region_bytes, lane, WARP_THREADS);
    }
}

// For kernels where all threads share it: they call this after their first push. It makes the first warp wait, but not
// for longer than data travels.
__device__ __forceinline__ void finish_control(const Group& group, const Control& control, uint32 region_bytes) {
    ptx::wait_at_barrier(BLOCK_BARRIER, threads_that_have_read(control));
    uint32 arrival = 0;
    if (threadIdx.x == 0) {
        arrival = arrive(group);
    }
    clear_previous_slot(group, control, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (threadIdx.x / WARP_THREADS == 0 && is_last(__shfl_sync(0xffffffffu, arrival, 0))) {
        rotate(group, control, region_bytes, threadIdx.x, WARP_THREADS);
    }
}

}  // namespace lamport
