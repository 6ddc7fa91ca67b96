// What a rank tells its peers of an operation, so that ranks which do different things notice: a number, and what all
// must have in common (rust/core/src/operations/description.rs says what the words are).
//
// One warp of the grid does it, one lane per peer, beside the warps that move data: it pushes the header first thing,
// and compares the peers' while they wait. Headers lie behind the slots, at a place that depends on the slot and the
// rank only, so they are found whatever the peer does. They are pushed, awaited and cleared like data.
//
// By the time that a difference is noticed, results may have been stored, of data that does not belong together. So the
// warp then marks the workspace as failed, waits until no other thread is left that would store, and writes NaN over
// the results. It does so too where a header did not come, and in all operations of a workspace that has failed.
#pragma once

#include "device/keep.cuh"
#include "device/ptx.cuh"
#include "protocol/failure.cuh"
#include "protocol/group.cuh"
#include "protocol/sentinel.cuh"
#include "protocol/wait.cuh"

namespace lamport {

// Words of headers have 31 bits, so that none is the sentinel.
constexpr uint32 HEADER_WORD_MASK = 0x7fffffffu;

// Bytes from a block's start to the header of rank `rank` in slot 0, and from there to that in the next slot.
__device__ __forceinline__ uint64 header_offset(const Group& group, uint32 rank) {
    return SLOTS * group.comm_size + rank * HEADER_BYTES;
}

__device__ __forceinline__ uint32 header_stride(const Group& group) { return group.world_size * HEADER_BYTES; }

__device__ __forceinline__ bool equal(const Vector& a, const Vector& b) {
    return ((a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) |
            (a.words[3] ^ b.words[3])) == 0;
}

// A warp writes NaN over `bytes` bytes (a multiple of 2) from `begin` (a multiple of 16) on.
__device__ __forceinline__ void fill_with_nan(Address begin, uint64 bytes) {
    const uint32 lane = threadIdx.x % WARP_THREADS;
    const uint64 whole = bytes / VECTOR_BYTES * VECTOR_BYTES;
#pragma unroll 1
    for (uint64 at = uint64{lane} * VECTOR_BYTES; at < whole; at += WARP_THREADS * VECTOR_BYTES) {
        ptx::store_output(begin + at, nan_vector());
    }
    const uint64 tail = whole + uint64{lane} * sizeof(unsigned short);
    if (tail < bytes) {
        ptx::store_output_half(begin + tail, NAN_WORD);
    }
}

// The part of the warp that speaks for its rank. All its lanes make it, before the grid-dependency wait, and call it
// together. What there is to do after the wait is as little as for data, which must not come sooner than headers.
class HeaderExchange {
public:
    __device__ __forceinline__ explicit HeaderExchange(const Group& group) : group_(group) {
        const uint32 lane = threadIdx.x % WARP_THREADS;
        const bool has_peer = lane < group.world_size - 1;
        peer_ = keep(has_peer ? successor(group, lane) : group.rank);
        stride_ = keep(header_stride(group));
        // A computed index, but into parameters that nothing writes to: they stay in constant memory.
        push_ = keep((has_peer ? group.peers[lane] : group.own) + header_offset(group, group.rank));
        poll_ = keep(group.own + header_offset(group, peer_));
    }

    // Tells the peers that this is the operation of this number, in this slot.
    __device__ __forceinline__ void push(uint32 slot, uint32 number) {
        own_ = Vector{{number, group_.header[1], group_.header[2], group_.header[3]}};
        offset_ = slot * stride_;
        if (has_peer()) {
            ptx::store_system(push_ + offset_, own_);
        }
    }

    // Puts the sentinel back over what the peers told before, and notes what is going on.
    __device__ __forceinline__ void clear(uint32 slot) const {
        const uint32 previous = slot == 0 ? SLOTS - 1 : slot - 1;
        if (has_peer()) {
            ptx::store_system(poll_ + previous * stride_, empty_vector());
        }
        if (threadIdx.x % WARP_THREADS == 0) {
            ptx::store_device(operation_in_progress(group_), own_);
        }
    }

    // Awaits what the peers tell. False if one tells something else, or nothing in time: the fault is reported then.
    __device__ __forceinline__ bool check() const {
        Vector found = own_;
        bool came = true;
        if (has_peer()) {
            const auto look = [&] {
                found = ptx::load_system_vector(poll_ + offset_);
                return has_arrived(found);
            };
            came = await(group_, look, [&] {
                report_waiting(group_, own_);
                return 1u << peer_;
            });
        }
        // Lanes leave the polling at different times.
        __syncwarp();
        const bool differs = came && !equal(found, own_);
        if (__reduce_or_sync(0xffffffffu, differs || !came ? 1 : 0) == 0) {
            return true;
        }
        if (differs) {
            ptx::store_system(group_.report + REPORT_PEERS + peer_ * VECTOR_BYTES, found);
        }
        if (threadIdx.x % WARP_THREADS == 0) {
            report_operation(group_, own_);
        }
        if (differs) {
            report_failure(group_, 1u << (MISMATCH_SHIFT + peer_));
        }
        return false;
    }

private:
    __device__ __forceinline__ bool has_peer() const { return peer_ != group_.rank; }

    const Group& group_;
    // Whom this lane speaks with; the own rank, where there is nobody.
    uint32 peer_;
    // Bytes from a header in one slot to that in the next.
    uint32 stride_;
    // Where the own header goes, and where the peer's arrives, as if in slot 0.
    Address push_;
    Address poll_;
    // The operation's.
    Vector own_;
    uint32 offset_;
};

// Waits until no thread of the grid is left that stores results, of which there are `bytes` bytes, after the workspace
// was marked as failed. Threads that wait look at the mark every 8 ms at least; those that have several rounds to go
// look anew in each, after 0.5 ms at most. `was_failed`: before the operation began, so that none of them waited.
__device__ __forceinline__ void await_other_threads(uint64 bytes, bool was_failed) {
    constexpr uint32 BYTES_PER_ROUND_BITS = 20;
    const uint32 milliseconds = was_failed ? 1 : 20 + static_cast<uint32>(bytes >> BYTES_PER_ROUND_BITS);
#pragma unroll 1
    for (uint32 i = 0; i < milliseconds; ++i) {
        ptx::sleep_a_millisecond();
    }
}

}  // namespace lamport
