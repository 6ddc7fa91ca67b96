// A message and its flag, between two ranks: what the emulator's memory may show, and what it must not.
#include "device/ptx.cuh"
#include "protocol/sentinel.cuh"

namespace lamport {

struct MessageParameters {
    Address message;
    Address flag;
    // Gets what was read of the message, and 1.
    Address result;
    // What this grid does, in the order of the steps below.
    uint32 steps;
    uint32 reserved;
};

constexpr uint32 STORE_MESSAGE = 1;
constexpr uint32 POLL_FLAG = 2;
constexpr uint32 FENCE = 4;
constexpr uint32 STORE_FLAG = 8;
constexpr uint32 LOAD_MESSAGE = 16;

__device__ __forceinline__ void message(const MessageParameters& parameters) {
    ptx::launch_dependents();
    ptx::wait_for_prior_grids();
    if (threadIdx.x != 0) {
        return;
    }
    const auto has = [&](uint32 step) { return (parameters.steps & step) != 0; };
    if (has(STORE_MESSAGE)) {
        ptx::store_system(parameters.message, 1);
    }
    while (has(POLL_FLAG) && !has_arrived(ptx::load_system(parameters.flag))) {
    }
    if (has(FENCE)) {
        emulator_fence();
    }
    if (has(STORE_FLAG)) {
        ptx::store_system(parameters.flag, 1);
    }
    if (has(LOAD_MESSAGE)) {
        ptx::store_device(parameters.result, ptx::load_system(parameters.message) + 1);
    }
}

}  // namespace lamport

extern "C" __global__ void message(const __grid_constant__ lamport::MessageParameters parameters) {
    lamport::message(parameters);
}
