// What a kernel leaves behind that gave up waiting: a mark in device memory that the other blocks look for while they
// wait, and that every later operation reads with its control words.
//
// A rank that has failed sends nothing more. What its operations, those of a graph or those that are enqueued already,
// make of results that never came must not reach a peer that was only late: such a peer gets what was sent before, and
// then misses this rank.
#pragma once

#include "device/ptx.cuh"
#include "protocol/group.cuh"

namespace lamport {

// One of the CONTROL_COPIES copies: the region to clear with the slot's index, the number of the operation before, and
// the mark, of 32 bits each. What moves on to the next slot writes the first two only, so that the mark stays.
__device__ __forceinline__ Address control_copy(const Group& group, uint32 copy) {
    return group.control_copies + copy * CONTROL_COPY_BYTES;
}

// Behind the copies: the header of the operation that runs, or ran last.
__device__ __forceinline__ Address operation_in_progress(const Group& group) {
    return control_copy(group, CONTROL_COPIES);
}

__device__ __forceinline__ bool has_failed(const Group& group) {
    return ptx::load_device(control_copy(group, 0) + MARK_OFFSET) != 0;
}

// Leaves the mark.
__device__ __forceinline__ void fail(const Group& group) {
#pragma unroll 1
    for (uint32 copy = 0; copy < CONTROL_COPIES; ++copy) {
        ptx::store_device(control_copy(group, copy) + MARK_OFFSET, 1);
    }
}

// Where the report has the ranks that differ, as bits of its first word. The own rank's bit: a foreign kernel has used
// the table.
constexpr uint32 MISMATCH_SHIFT = 16;

// Tells the host what this rank was doing. It may come after the report's first word: the host waits a little for it.
__device__ __forceinline__ void report_operation(const Group& group, const Vector& header) {
    ptx::store_system(group.report + REPORT_OPERATION, header);
}

// Tells the host which operation waits for a peer's header. To be called on slow paths, as often as they come by: the
// host forgets it.
__device__ __forceinline__ void report_waiting(const Group& group, const Vector& header) {
    ptx::store_system(group.report + REPORT_WAITING, header);
}

// Sets bits of the report's first word, once all that was stored for it is there, and leaves the mark.
__device__ __forceinline__ void report_failure(const Group& group, uint32 bits) {
    ptx::fence_system();
    ptx::set_bits_system(group.report, bits);
    fail(group);
}

}  // namespace lamport
