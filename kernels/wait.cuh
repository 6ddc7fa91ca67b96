// The bounded wait: what turns a dead peer into an error that names it, instead of a kernel that never ends.
#pragma once

#include "failure.cuh"
#include "group.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"

namespace lamport {

// What is awaited: data that a rank sends in any case, or data that it sends once it has heard of the others itself.
// Second-hand data is awaited half as long again, so that whoever waits for an absent rank itself is the first to give
// up, and names it.
enum class Awaited { first_hand, second_hand };

// Decides when waiting has been long enough. One per thread that polls.
//
// Looks become rarer: whatever a look costs, threads that all wait long cannot spend their time on it, and then be late
// themselves. (Looks every 0.1 ms at a word of host memory did that: once a group had waited that long for a late peer,
// each operation was late for the next.)
template <Awaited awaited>
class Patience {
public:
    // Polls before the next look. A poll takes about 0.5 us, so the first look comes after some 0.5 ms: an operation
    // whose peers are on time never gets there.
    __device__ __forceinline__ uint32 polls() const { return polls_; }

    // To be called after so many polls that found words of the ranks `missing` (a bit mask) missing. True: give up.
    //
    // A block that gives up reports the ranks it missed. One that finds that another block has, gives up without adding
    // to it: its own peers may only be late. So the blocks of a grid that do not run at the same time do not each wait
    // for the whole timeout.
    __device__ __forceinline__ bool is_over(const Group& group, uint32 missing) {
        polls_ = min(2 * polls_, MAX_POLLS);
        if (has_failed(group)) {
            return true;
        }
        // Computed here, not kept: threads that wait hold their rows in registers.
        const uint64 timeout = group.timeout_nanoseconds;
        if (timeout == 0) {
            return false;
        }
        const uint32 now = static_cast<uint32>(ptx::nanoseconds() >> UNIT_BITS);
        if (start_ == 0) {
            // The wait began some 0.5 ms ago: part of the timeout's error. The other is the time between looks.
            start_ = now;
        }
        const uint64 units = (awaited == Awaited::first_hand ? timeout : timeout + timeout / 2) >> UNIT_BITS;
        // Both times are rounded down, and so are the units: one more for each, so that it is never too early.
        if (now - start_ <= units + 1) {
            return false;
        }
        ptx::set_bits_system(group.report, missing);
        fail(group);
        return true;
    }

private:
    // Some 20 ms.
    static constexpr uint32 MAX_POLLS = 1 << 15;

    // Time is counted in units of 2^20 ns, about a millisecond: threads that wait have no second register to spare.
    static constexpr uint32 UNIT_BITS = 20;

    uint32 polls_ = 1 << 10;
    uint32 start_ = 0;
};

// Calls `look` until it returns true: that all that is awaited is there. `missing` returns the ranks (a bit mask) of
// which the last look did not find all; it is called after long waits only. Returns false if they did not come, and the
// fault is reported. Lanes may call it in any number and return at different times: reconverge before the next
// warp-wide operation.
//
// The shape of the loops was chosen by measurement: see docs/performance.md before changing it.
template <Awaited awaited = Awaited::first_hand, class Look, class Missing>
__device__ __forceinline__ bool await(const Group& group, Look look, Missing missing) {
    Patience<awaited> patience;
    while (true) {
        bool is_there = look();
        for (uint32 polls = 1; !is_there && polls < patience.polls(); ++polls) {
            is_there = look();
        }
        if (is_there) {
            return true;
        }
        if (patience.is_over(group, missing())) {
            return false;
        }
    }
}

}  // namespace lamport
