// Verifies by transfer that peer writes arrive: some systems map a peer's memory without error and lose every store.
//
// Each rank pushes a vector of its own into its cell of every peer's verification area, behind the slots, with the
// instructions that the operations use, and awaits those of all peers. One warp, one lane per peer.
#include "group.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "sentinel.cuh"

namespace lamport {

struct VerifyParameters {
    Group group;
    // By rank. No word is the sentinel.
    Vector nonces[MAX_WORLD_SIZE];
    // A word the host can read: gets a bit for each rank whose vector was wrong or did not arrive.
    Address result;
    uint64 reserved;
};

ASSERT_LAYOUT_OF_VerifyParameters(VerifyParameters);

__device__ __forceinline__ bool equal(const Vector& a, const Vector& b) {
    return ((a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) |
            (a.words[3] ^ b.words[3])) == 0;
}

// Polls a cell until its vector is whole or the time is up. No fault is recorded: the result says it all.
__device__ __forceinline__ Vector await_cell(const Group& group, Address cell) {
    const uint64 start = ptx::nanoseconds();
    Vector vector = ptx::load_system_vector(cell);
    while (!has_arrived(vector)) {
        if (group.timeout_nanoseconds != 0 && ptx::nanoseconds() - start >= group.timeout_nanoseconds) {
            break;
        }
        vector = ptx::load_system_vector(cell);
    }
    return vector;
}

__device__ __forceinline__ void verify(const VerifyParameters& parameters) {
    const Group& group = parameters.group;
    ptx::launch_dependents();
    ptx::wait_for_prior_grids();

    const uint64 area = SLOTS * group.comm_size;
    uint32 wrong = 0;
    if (threadIdx.x < group.world_size - 1) {
        const uint32 successor = group.rank + 1 + threadIdx.x;
        const uint32 peer = successor < group.world_size ? successor : successor - group.world_size;
        // Computed indices into the parameters: they stay in constant memory, since the parameters are never written.
        ptx::store_system(group.peers[threadIdx.x] + area + group.rank * VECTOR_BYTES, parameters.nonces[group.rank]);
        const Address cell = group.own + area + peer * VECTOR_BYTES;
        if (!equal(await_cell(group, cell), parameters.nonces[peer])) {
            wrong = 1u << peer;
        }
        // The cell is as it was before.
        ptx::store_system(cell, empty_vector());
    }
    __syncwarp();
    wrong = __reduce_or_sync(0xffffffffu, wrong);
    if (threadIdx.x == 0) {
        ptx::store_system(parameters.result, wrong);
    }
}

}  // namespace lamport

extern "C" __global__ void __launch_bounds__(lamport::WARP_THREADS)
    verify(const __grid_constant__ lamport::VerifyParameters parameters) {
    lamport::verify(parameters);
}
