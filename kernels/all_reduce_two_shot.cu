// Two-shot all-reduce: every rank sums one shard of the tensor and pushes the sums to all. Two ways over the link, but
// each byte travels twice, not once per peer; best for large tensors. The halves follow each other vector by vector,
// with no barrier between them: a sum is its own flag too. The macros choose one of the variants.
#include "all_reduce.cuh"
#include "control.cuh"
#include "tensor_vectors.cuh"
#include "vector_exchange.cuh"

namespace lamport {

// A thread has vector `at` of every shard; large tensors take several rounds. Region r has two halves: rank r's
// contributions to the own shard, and rank r's sums.
template <class Value, uint32 capacity>
__device__ __forceinline__ void all_reduce_two_shot(const AllReduceParameters& parameters) {
    const Group& group = parameters.group;
    const TensorVectors input(parameters.input, parameters.bytes), output(parameters.output, parameters.bytes);
    const uint32 shard = parameters.vectors;
    const uint32 threads = gridDim.x * blockDim.x;
    uint32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const uint64 place = uint64{at} * VECTOR_BYTES;
    const uint64 to_sums = uint64{shard} * VECTOR_BYTES;
    const VectorRoutes<capacity> routes(group, uint64{group.rank} * parameters.region_bytes + place, place,
                                        parameters.region_bytes);
    const ControlReader control_reader(group);
    // Nothing of the above is moved behind a branch, and so behind the wait.
    if (shard == 0) {
        ptx::wait_for_prior_grids();
        return;
    }
    ptx::wait_for_prior_grids();

    uint64 offset = 0;
    bool first_round = true;
    Control control;
    while (true) {
        const bool active = at < shard;
        // Of the peers' shards, in the order of Group::peers, and of the own one.
        Vector contributions[capacity - 1];
        uint32 indices[capacity - 1];
#pragma unroll
        for (uint32 i = 0; i < capacity - 1; ++i) {
            const bool exists = active && i + 1 < group.world_size;
            indices[i] = exists ? successor(group, i) * shard + at : ~0u;
            contributions[i] = input.load_whole(indices[i], input.address(indices[i]));
        }
        const uint32 own_index = active ? group.rank * shard + at : ~0u;
        Vector own = input.load_whole(own_index, input.address(own_index));
        if (first_round) {
            control = control_reader.read();
            offset = control.slot_offset;
        }
#pragma unroll
        for (uint32 i = 0; i < capacity - 1; ++i) {
            input.add_tail(indices[i], input.address(indices[i]), contributions[i]);
            if (active && i + 1 < group.world_size) {
                routes.push(i, offset, scrub(contributions[i]));
            }
        }
        input.add_tail(own_index, input.address(own_index), own);
        if (first_round) {
            ptx::launch_dependents();
            finish_control(group, control, parameters.region_bytes);
            first_round = false;
        }
        RankVectors<capacity> vectors;
        const bool complete = routes.await_all(offset, scrub(own), active, vectors);
        const Vector sum = rounded_sum<Value>(vectors, group.world_size);
        // A sum of what did not come must not travel.
        if (active && complete) {
            routes.push_to_all(offset + to_sums, sum);
        }
        output.store(own_index, sum);
        routes.await_all(offset + to_sums, sum, active, vectors);
#pragma unroll
        for (uint32 rank = 0; rank < capacity; ++rank) {
            if (active && rank < group.world_size && rank != group.rank) {
                output.store(rank * shard + at, vectors.of[rank]);
            }
        }
        at += threads;
        if (at - threadIdx.x >= shard) {
            break;
        }
        offset += uint64{threads} * VECTOR_BYTES;
    }
}

}  // namespace lamport

extern "C" __global__ void __launch_bounds__(LAMPORT_MAX_THREADS, LAMPORT_MIN_BLOCKS)
    all_reduce_two_shot(const __grid_constant__ lamport::AllReduceParameters parameters) {
    lamport::all_reduce_two_shot<lamport::LAMPORT_VALUE, LAMPORT_CAPACITY>(parameters);
}
