// The bounded wait: what turns a dead peer into an error that names it, instead of a kernel that never ends.
#pragma once

#include "group.cuh"
#include "ptx.cuh"

namespace lamport {

// One per polling loop. The clock and the fault record are looked at only every so many polls, so that an operation
// whose peers are on time pays for neither.
class BoundedWait {
public:
    __device__ __forceinline__ explicit BoundedWait(const Group& group) : group_(group) {}

    // Called after a poll that found words missing; `missing_ranks` computes whose, as a bit mask. True: stop polling.
    //
    // A block that gives up records the ranks it missed. One that finds a record by another block, or the host's wish
    // to abort, gives up without adding to it: its own peers may only be late. So the blocks of a grid that do not run
    // at the same time do not each wait for the whole timeout.
    template <class MissingRanks>
    __device__ __forceinline__ bool gives_up(MissingRanks missing_ranks) {
        if (++polls_ % POLLS_PER_LOOK != 0) {
            return false;
        }
        if (ptx::load_system(group_.fault + FIELD_OFFSET(FaultRecord, missing_ranks)) != 0 ||
            ptx::load_system(group_.fault + FIELD_OFFSET(FaultRecord, abort)) != 0) {
            return true;
        }
        if (group_.timeout_nanoseconds == 0) {
            return false;
        }
        const uint64 now = ptx::nanoseconds();
        if (start_ == 0) {
            // The first look comes some 0.1 ms into the wait, which is the error of the timeout.
            start_ = now;
        }
        if (now - start_ < group_.timeout_nanoseconds) {
            return false;
        }
        ptx::set_bits_system(group_.fault + FIELD_OFFSET(FaultRecord, missing_ranks), missing_ranks());
        return true;
    }

private:
    // A poll takes about 0.4 us, so a look comes every 0.1 ms; a look at the fault record crosses the host's bus.
    static constexpr uint32 POLLS_PER_LOOK = 256;

    const Group& group_;
    uint32 polls_ = 0;
    uint64 start_ = 0;
};

}  // namespace lamport
