// An exchange of single words: a thread has a word for one peer and awaits that peer's.
#pragma once

#include "group.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"
#include "wait.cuh"

namespace lamport {

// The rank of peers[peer].
__device__ __forceinline__ uint32 rank_of_peer(const Group& group, uint32 peer) {
    const uint32 rank = group.rank + 1 + peer;
    return rank < group.world_size ? rank : rank - group.world_size;
}

// Pushes `own`, already scrubbed, into the own region of peers[peer], and returns the word at the same place of that
// peer's region here. `slot_offset` is the operation's slot, `offset` the place in a region, both in bytes. If the peer
// does not come, returns the sentinel (and the fault is recorded).
//
// Lanes may call it in any number and return at different times: reconverge before the next warp-wide operation.
__device__ __forceinline__ uint32 exchange_word(const Group& group, uint64 slot_offset, uint32 region_bytes,
                                                uint32 offset, uint32 peer, uint32 own) {
    // The index is computed, but the parameters stay in constant memory: nothing ever writes to them.
    ptx::store_system(group.peers[peer] + slot_offset + uint64{group.rank} * region_bytes + offset, own);
    const uint32 source = rank_of_peer(group, peer);
    const Address address = group.own + slot_offset + uint64{source} * region_bytes + offset;
    BoundedWait wait(group);
    uint32 word = ptx::load_system(address);
    while (!has_arrived(word)) {
        if (wait.gives_up([=] { return 1u << source; })) {
            break;
        }
        word = ptx::load_system(address);
    }
    return word;
}

}  // namespace lamport
