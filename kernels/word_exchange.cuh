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

// The way of one word to one peer, and of the peer's word back. Made before the grid-dependency wait, so that only the
// slot is to be added when the word is ready.
class WordRoute {
public:
    // `offset` is the word's place in every region, in bytes; `peer` an index of Group::peers.
    __device__ __forceinline__ WordRoute(const Group& group, uint32 region_bytes, uint32 offset, uint32 peer)
        : source_(rank_of_peer(group, peer)),
          // A computed index, but into parameters that nothing writes to: they stay in constant memory.
          push_(group.peers[peer] + uint64{group.rank} * region_bytes + offset),
          poll_(group.own + uint64{source_} * region_bytes + offset) {}

    // The peer's rank.
    __device__ __forceinline__ uint32 source() const { return source_; }

    // Pushes `own`, already scrubbed, and returns the peer's word. If the peer does not come, returns the sentinel, and
    // the fault is recorded. Lanes may call it in any number and return at different times: reconverge before the next
    // warp-wide operation.
    __device__ __forceinline__ uint32 exchange(const Group& group, uint64 slot_offset, uint32 own) const {
        ptx::store_system(push_ + slot_offset, own);
        const Address address = poll_ + slot_offset;
        BoundedWait wait(group);
        uint32 word = ptx::load_system(address);
        while (!has_arrived(word)) {
            if (wait.gives_up([this] { return 1u << source_; })) {
                break;
            }
            word = ptx::load_system(address);
        }
        return word;
    }

private:
    uint32 source_;
    Address push_;
    Address poll_;
};

}  // namespace lamport
