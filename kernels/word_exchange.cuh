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

// The way of one word to one peer, and of the peer's word back. To be computed before the grid-dependency wait and kept
// in shared memory: then only the slot is to be added when the word is ready, and no register is taken meanwhile.
struct alignas(16) WordRoute {
    // Where the own word goes in the peer's block, and where the peer's word arrives in the own one, both as if in slot
    // 0.
    Address push;
    Address poll;
};

// `offset` is the word's place in every region, in bytes; `peer` an index of Group::peers.
__device__ __forceinline__ WordRoute word_route(const Group& group, uint32 region_bytes, uint32 offset, uint32 peer) {
    // A computed index, but into parameters that nothing writes to: they stay in constant memory.
    return WordRoute{group.peers[peer] + uint64{group.rank} * region_bytes + offset,
                     group.own + uint64{rank_of_peer(group, peer)} * region_bytes + offset};
}

// Pushes `own`, already scrubbed, and returns the word of rank `source`. If it does not come, returns the sentinel, and
// the fault is recorded. Lanes may call it in any number and return at different times: reconverge before the next
// warp-wide operation.
__device__ __forceinline__ uint32 exchange_word(const Group& group, const WordRoute& route, uint64 slot_offset,
                                                uint32 own, uint32 source) {
    ptx::store_system(route.push + slot_offset, own);
    const Address address = route.poll + slot_offset;
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
