// What a rank tells its peers of an operation, so that ranks which do different things notice: a number, and what all
// must have in common (rust/core/src/operations/operation.rs says what the words are).
//
// One warp of the grid does it, one lane per peer, beside the warps that move data: it pushes the header first thing, and
// compares the peers' while they wait. Headers lie behind the slots, at a place that depends on the slot and the rank
// only, so they are found whatever the peer does. They are pushed, awaited and cleared like data.
//
// By the time that a difference is noticed, results may have been stored, of data that does not belong together. So the
// warp then marks the workspace as failed, waits until no other thread is left that would store, and writes NaN over the
// results. It does so too where data did not come, and in all operations of a workspace that has failed.
#pragma once

#include "failure.cuh"
#include "group.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"
#include "wait.cuh"

namespace lamport {

// Words of headers have 31 bits, so that none is the sentinel.
constexpr uint32 HEADER_WORD_MASK = 0x7fffffffu;

__device__ __forceinline__ Address header_cell(Address block, const Group& group, uint32 slot, uint32 rank) {
    return block + SLOTS * group.comm_size + uint64{slot * group.world_size + rank} * HEADER_BYTES;
}

// The number of the operation that follows the one of number `previous`.
__device__ __forceinline__ uint32 next_number(const Group& group, uint32 previous) {
    return (previous + group.header[0]) & HEADER_WORD_MASK;
}

__device__ __forceinline__ bool equal(const Vector& a, const Vector& b) {
    return ((a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) |
            (a.words[3] ^ b.words[3])) == 0;
}

// NaN in every dtype.
constexpr uint32 NAN_WORD = 0x7fff7fffu;

// A warp writes NaN over `bytes` bytes (a multiple of 2) from `begin` (a multiple of 16) on.
__device__ __forceinline__ void fill_with_nan(Address begin, uint64 bytes) {
    const uint32 lane = threadIdx.x % WARP_THREADS;
    const uint64 whole = bytes / VECTOR_BYTES * VECTOR_BYTES;
#pragma unroll 1
    for (uint64 at = uint64{lane} * VECTOR_BYTES; at < whole; at += WARP_THREADS * VECTOR_BYTES) {
        ptx::store_output(begin + at, Vector{{NAN_WORD, NAN_WORD, NAN_WORD, NAN_WORD}});
    }
    const uint64 tail = whole + uint64{lane} * sizeof(unsigned short);
    if (tail < bytes) {
        ptx::store_output_half(begin + tail, NAN_WORD);
    }
}

// The part of the warp that speaks for its rank. All its lanes make it and call it together.
class HeaderExchange {
public:
    // `slot` and `number` are the operation's own.
    __device__ __forceinline__ HeaderExchange(const Group& group, uint32 slot, uint32 number)
        : group_(group),
          slot_(slot),
          lane_(threadIdx.x % WARP_THREADS),
          own_{{number, group.header[1], group.header[2], group.header[3]}} {}

    // Tells the peers, and clears what they told before.
    __device__ __forceinline__ void push() const {
        if (lane_ == 0) {
            ptx::store_device(operation_in_progress(group_), own_);
        }
        if (has_peer()) {
            // A computed index, but into parameters that nothing writes to: they stay in constant memory.
            ptx::store_system(header_cell(group_.peers[lane_], group_, slot_, group_.rank), own_);
            const uint32 previous = slot_ == 0 ? SLOTS - 1 : slot_ - 1;
            ptx::store_system(header_cell(group_.own, group_, previous, peer()), empty_vector());
        }
    }

    // Awaits what the peers tell. False if one tells something else, or nothing in time: the fault is reported then.
    __device__ __forceinline__ bool check() const {
        Vector found = own_;
        bool came = true;
        if (has_peer()) {
            const Address cell = header_cell(group_.own, group_, slot_, peer());
            const auto look = [&] {
                found = ptx::load_system_vector(cell);
                return has_arrived(found);
            };
            came = await(group_, look, [&] { return 1u << peer(); });
        }
        // Lanes leave the polling at different times.
        __syncwarp();
        const bool differs = came && !equal(found, own_);
        if (__reduce_or_sync(0xffffffffu, differs || !came ? 1 : 0) == 0) {
            return true;
        }
        if (differs) {
            ptx::store_system(group_.report + REPORT_PEERS + peer() * VECTOR_BYTES, found);
        }
        if (lane_ == 0) {
            report_operation(group_, own_);
        }
        if (differs) {
            report_failure(group_, 1u << (MISMATCH_SHIFT + peer()));
        }
        return false;
    }

private:
    __device__ __forceinline__ bool has_peer() const { return lane_ < group_.world_size - 1; }
    __device__ __forceinline__ uint32 peer() const { return successor(group_, lane_); }

    const Group& group_;
    uint32 slot_;
    uint32 lane_;
    Vector own_;
};

// Waits until no thread of the grid is left that stores results, of which there are `bytes` bytes, after the workspace
// was marked as failed. Threads that wait look at the mark every 16 ms at least; those that have several rounds to go
// look anew in each, after 0.5 ms at most. `was_failed`: before the operation began, so that none of them waited.
__device__ __forceinline__ void await_other_threads(uint64 bytes, bool was_failed) {
    constexpr uint32 BYTES_PER_ROUND_BITS = 20;
    const uint32 milliseconds = was_failed ? 1 : 40 + static_cast<uint32>(bytes >> BYTES_PER_ROUND_BITS);
#pragma unroll 1
    for (uint32 i = 0; i < milliseconds; ++i) {
        ptx::sleep_a_millisecond();
    }
}

}  // namespace lamport
