// The bounded wait: what turns a dead peer into an error that names it, instead of a kernel that never ends.
#pragma once

#include "group.cuh"
#include "ptx.cuh"
#include "sentinel.cuh"

namespace lamport {

// Decides when waiting has been long enough. One per thread that polls.
class Patience {
public:
    // Polls between two looks. A poll takes about 0.4 us, so that a look comes every 0.1 ms: an operation whose peers
    // are on time pays neither for the clock nor for the way to the fault record, which is across the host's bus.
    static constexpr uint32 POLLS_PER_LOOK = 256;

    // To be called after POLLS_PER_LOOK polls that found words of the ranks `missing` (a bit mask) missing. True: give
    // up.
    //
    // A block that gives up records the ranks it missed. One that finds a record by another block, or the host's wish
    // to abort, gives up without adding to it: its own peers may only be late. So the blocks of a grid that do not run
    // at the same time do not each wait for the whole timeout.
    __device__ __forceinline__ bool is_over(const Group& group, uint32 missing) {
        const Address missing_ranks = group.fault + FIELD_OFFSET(FaultRecord, missing_ranks);
        const Address abort = group.fault + FIELD_OFFSET(FaultRecord, abort);
        if (ptx::load_system(missing_ranks) != 0 || ptx::load_system(abort) != 0) {
            return true;
        }
        if (group.timeout_nanoseconds == 0) {
            return false;
        }
        const uint64 now = ptx::nanoseconds();
        if (start_ == 0) {
            // The wait began some 0.1 ms ago, which is the error of the timeout.
            start_ = now;
        }
        if (now - start_ < group.timeout_nanoseconds) {
            return false;
        }
        ptx::set_bits_system(missing_ranks, missing);
        return true;
    }

private:
    uint64 start_ = 0;
};

// Polls with `load`, which returns a word or a vector of rank `source`, until no word is the sentinel. Returns what was
// loaded last: if the rank did not come, that contains the sentinel, and the fault is recorded. Lanes may call it in
// any number and return at different times: reconverge before the next warp-wide operation.
template <class Load>
__device__ __forceinline__ auto poll(const Group& group, uint32 source, Load load) {
    Patience patience;
    while (true) {
        auto loaded = load();
        for (uint32 polls = 1; !has_arrived(loaded) && polls < Patience::POLLS_PER_LOOK; ++polls) {
            loaded = load();
        }
        if (has_arrived(loaded) || patience.is_over(group, 1u << source)) {
            return loaded;
        }
    }
}

}  // namespace lamport
