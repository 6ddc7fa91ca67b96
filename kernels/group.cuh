// What every kernel is told about its group. The host fills it in; the layout is checked against it below.
#pragma once

#include "constants.cuh"
#include "types.cuh"

namespace lamport {

// A kernel parameter, and as such in constant memory: no load from device memory precedes the first push.
struct Group {
    // The own block.
    Address own;
    // The peers' blocks, rotated: peers[i] is rank (rank + 1 + i) % world_size. So not all ranks push to rank 0 first,
    // and a loop over the peers has constant indices.
    Address peers[MAX_WORLD_SIZE - 1];
    // Bytes per slot.
    uint64 comm_size;
    // int32[3]: arrival counter, unused, slot index.
    Address counters;
    // int64[2]: extent to clear, comm_size.
    Address extents;
    // A word of device memory: not 0 once a kernel has given up waiting.
    Address fault;
    // A word of pinned host memory: bit r says that rank r's data had not arrived when the time was up. Kernels set
    // bits and never read it: many threads that read across the host's bus wait for each other.
    Address report;
    // How long to wait for a peer. 0: for ever.
    uint64 timeout_nanoseconds;
    uint32 rank;
    uint32 world_size;
    // CONTROL_COPIES copies of what an operation reads first, CONTROL_COPY_BYTES apart: see control.cuh.
    Address control_copies;
};

// The host's layout, from constants.cuh.
ASSERT_LAYOUT_OF_Group(Group);

// Whether the group has rank `rank`, in a kernel for groups of up to `capacity` ranks. Groups of up to half as many
// have kernels of their own, so the first ranks are there: nothing is looked up for them.
template <uint32 capacity>
__device__ __forceinline__ bool has_rank(const Group& group, uint32 rank) {
    return rank <= capacity / 2 || rank < group.world_size;
}

// The other ranks, a bit each.
__device__ __forceinline__ uint32 all_peers(const Group& group) {
    return ((1u << group.world_size) - 1) & ~(1u << group.rank);
}

// The rank of group.peers[index].
__device__ __forceinline__ uint32 successor(const Group& group, uint32 index) {
    const uint32 rank = group.rank + 1 + index;
    return rank < group.world_size ? rank : rank - group.world_size;
}

}  // namespace lamport
