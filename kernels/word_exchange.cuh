// An exchange of single words: a thread has a word for one peer and awaits that peer's.
#pragma once

#include "group.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"
#include "wait.cuh"

namespace lamport {

// The rank of peer `index`, counting the peers in ascending order of rank.
__device__ __forceinline__ uint32 peer_in_rank_order(const Group& group, uint32 index) {
    return index < group.rank ? index : index + 1;
}

// The way of one word to one peer, and of the peer's word back. To be computed before the grid-dependency wait and kept
// in shared memory: then only the slot is to be added when the word is ready, and no register is taken meanwhile.
struct alignas(16) WordRoute {
    // Where the own word goes in the peer's block, and where the peer's word arrives in the own one, both as if in slot
    // 0.
    Address push;
    Address poll;
};

// `offset` is the word's place in every region, in bytes; `peer` a rank other than the own.
__device__ __forceinline__ WordRoute word_route(const Group& group, uint32 region_bytes, uint32 offset, uint32 peer) {
    const uint32 distance = peer > group.rank ? peer - group.rank : peer + group.world_size - group.rank;
    // A computed index, but into parameters that nothing writes to: they stay in constant memory.
    return WordRoute{group.peers[distance - 1] + uint64{group.rank} * region_bytes + offset,
                     group.own + uint64{peer} * region_bytes + offset};
}

// Pushes `word`, already scrubbed.
__device__ __forceinline__ void push_word(const WordRoute& route, uint64 slot_offset, uint32 word) {
    ptx::store_system(route.push + slot_offset, word);
}

// Awaits the word of rank `peer`. The sentinel if the rank did not come: see `await`.
__device__ __forceinline__ uint32 await_word(const Group& group, const WordRoute& route, uint64 slot_offset,
                                             uint32 peer) {
    const Address address = route.poll + slot_offset;
    uint32 word;
    await(group, [&] {
        word = ptx::load_system(address);
        return has_arrived(word) ? 0 : 1u << peer;
    });
    return word;
}

}  // namespace lamport
