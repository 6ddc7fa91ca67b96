// An exchange of single words: every lane has one, and wants the sum of all ranks' words at its place.
#pragma once

#include "group.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"
#include "wait.cuh"

namespace lamport {

// Ranks whose words a lane polls at the same time where the world size is not known when compiling.
inline constexpr uint32 RANKS_AT_ONCE = 8;

// Pushes the float32 `own` to every peer and returns the sum over all ranks, in rank order, so that every rank gets the
// same bits. `slot_offset` is the operation's slot, `offset` the word's place in a region. The own word never leaves
// its register. Lanes may call it in any number, diverged; reconverge before the next warp-wide operation.
//
// `static_world_size` is the group's, or 0 for any.
template <uint32 static_world_size>
__device__ __forceinline__ float sum_over_ranks(const Group& group, uint64 slot_offset, uint64 region_bytes,
                                                uint64 offset, float own) {
    constexpr bool is_static = static_world_size != 0;
    constexpr uint32 most_ranks = is_static ? static_world_size : MAX_WORLD_SIZE;
    constexpr uint32 at_once = is_static ? static_world_size : RANKS_AT_ONCE;
    const uint32 world_size = is_static ? static_world_size : group.world_size;

    const uint32 own_word = scrub(__float_as_uint(own));
    const uint64 push_offset = slot_offset + group.rank * region_bytes + offset;
#pragma unroll
    for (uint32 peer = 0; peer < most_ranks - 1; ++peer) {
        if (is_static || peer < world_size - 1) {
            ptx::store_system(group.peers[peer] + push_offset, own_word);
        }
    }

    BoundedWait wait(group);
    float total = 0.0f;
    for (uint32 first = 0; first < most_ranks; first += at_once) {
        const Address regions = group.own + slot_offset + offset + first * region_bytes;
        uint32 words[at_once];
#pragma unroll
        for (uint32 i = 0; i < at_once; ++i) {
            const bool awaited = first + i != group.rank && (is_static || first + i < world_size);
            words[i] = awaited ? SENTINEL : first + i == group.rank ? own_word : 0u;
        }
        bool complete = false;
        while (!complete) {
            // All loads of a round are in flight together, and only for words that have not arrived.
#pragma unroll
            for (uint32 i = 0; i < at_once; ++i) {
                if (!has_arrived(words[i])) {
                    words[i] = ptx::load_system(regions + i * region_bytes);
                }
            }
            complete = true;
#pragma unroll
            for (uint32 i = 0; i < at_once; ++i) {
                complete &= has_arrived(words[i]);
            }
            if (!complete && wait.gives_up([&] {
                    uint32 missing = 0;
#pragma unroll
                    for (uint32 i = 0; i < at_once; ++i) {
                        missing |= has_arrived(words[i]) ? 0u : 1u << (first + i);
                    }
                    return missing;
                })) {
                break;
            }
        }
#pragma unroll
        for (uint32 i = 0; i < at_once; ++i) {
            total += __uint_as_float(words[i]);
        }
        if (!is_static && first + at_once >= world_size) {
            break;
        }
    }
    return total;
}

// The same, for the group's world size. The usual sizes have code of their own: a branch that all threads take alike
// costs less than the loads and additions of ranks that do not exist.
__device__ __forceinline__ float sum_over_ranks(const Group& group, uint64 slot_offset, uint64 region_bytes,
                                                uint64 offset, float own) {
    switch (group.world_size) {
        case 2: return sum_over_ranks<2>(group, slot_offset, region_bytes, offset, own);
        case 4: return sum_over_ranks<4>(group, slot_offset, region_bytes, offset, own);
        case 8: return sum_over_ranks<8>(group, slot_offset, region_bytes, offset, own);
        default: return sum_over_ranks<0>(group, slot_offset, region_bytes, offset, own);
    }
}

}  // namespace lamport
