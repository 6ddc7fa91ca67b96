// Counts calls of which this rank sends nothing: they were refused here, or have nothing to do. The operations after
// them, replays among them, then have the numbers that they have on ranks where those calls were operations.
//
// The host is told the number of the first such call in a row: peers may wait for it.
#include "device/ptx.cuh"
#include "protocol/failure.cuh"
#include "protocol/group.cuh"
#include "protocol/header.cuh"

namespace lamport {

struct SkipParameters {
    // The first word of its header says how many calls.
    Group group;
};

ASSERT_LAYOUT_OF_SkipParameters(SkipParameters);

__device__ __forceinline__ void skip(const SkipParameters& parameters) {
    const Group& group = parameters.group;
    ptx::launch_dependents();
    ptx::wait_for_prior_grids();
    const Address copy = control_copy(group, threadIdx.x);
    uint32 region_and_slot, previous, failed;
    ptx::load_device(copy, region_and_slot, previous, failed);
    const uint32 last_operation = ptx::load_device(operation_in_progress(group));
    ptx::store_device(copy, region_and_slot, (previous + group.header[0]) & HEADER_WORD_MASK);
    if (threadIdx.x == 0 && previous == last_operation) {
        ptx::store_system(group.report + REPORT_SKIPPED, ((previous + 1) & HEADER_WORD_MASK) | SKIPPED_IS_THERE);
    }
}

}  // namespace lamport

extern "C" __global__ void __launch_bounds__(lamport::CONTROL_COPIES)
    skip(const __grid_constant__ lamport::SkipParameters parameters) {
    lamport::skip(parameters);
}
