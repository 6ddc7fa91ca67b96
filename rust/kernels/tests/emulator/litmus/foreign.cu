// What a foreign kernel leaves of a table that it has used: the slot index and the extent to clear that it moved on to.
#include "device/ptx.cuh"

namespace lamport {

struct ForeignParameters {
    Address slot_index;
    Address clear_extent;
    uint64 extent;
    uint32 slot;
    uint32 reserved;
};

__device__ __forceinline__ void foreign(const ForeignParameters& parameters) {
    ptx::launch_dependents();
    ptx::wait_for_prior_grids();
    if (threadIdx.x == 0) {
        ptx::store_device(parameters.slot_index, parameters.slot);
        ptx::store_device_long(parameters.clear_extent, parameters.extent);
    }
}

}  // namespace lamport

extern "C" __global__ void foreign(const __grid_constant__ lamport::ForeignParameters parameters) {
    lamport::foreign(parameters);
}
