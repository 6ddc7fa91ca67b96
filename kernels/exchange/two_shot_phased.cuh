// Two shots in three phases, each spread over all warps of a block: every warp pushes to one peer; then the first ones
// sum vectors of the own shard, and push the sums to all; then every warp stores the sums of one peer. For tensors that
// the grid takes in one round, in groups of three to eight ranks: a thread of two_shot.cuh has a vector of every shard,
// and does all of this for each of them, one after the other.
//
// What a block awaits, the same block of its peers pushes: so it does not matter which blocks run at the same time.
// This is so where the ranks' devices are alike, and with them the plans. Others need all blocks of a grid at once, and
// have them, as any grid does.
#pragma once

#include "protocol/control.cuh"
#include "protocol/vector_routes.cuh"

namespace lamport {

// Vector `at` of a shard, in the tensor and in the shard. It is beyond the tensor if it is beyond the shard.
struct ShardVector {
    __device__ __forceinline__ ShardVector(uint32 rank, uint32 at, uint32 shard)
        : index(at < shard ? rank * shard + at : ~0u), offset(uint64{at} * VECTOR_BYTES), is_there(at < shard) {}

    // Its place in the tensor.
    uint32 index;
    // Its bytes from the shard's begin.
    uint64 offset;
    bool is_there;
};

// The block has as many threads for each peer as it has vectors of a shard, `chunk`: whole warps. Region r has two
// halves: rank r's contributions to the own shard, and rank r's sums.
template <class Source, class Sink, uint32 capacity>
__device__ __forceinline__ void two_shot_phased(const typename Sink::Parameters& parameters) {
    const Group& group = parameters.group;
    if (is_speaking_block()) {
        Sink::speak(parameters);
        return;
    }
    const Source input(parameters);
    const Sink output(parameters);
    const uint32 shard = parameters.vectors;
    const uint64 to_sums = uint64{shard} * VECTOR_BYTES;
    const uint32 peers = group.world_size - 1;
    const uint32 chunk = blockDim.x / peers;
    const uint32 first = data_block() * chunk;
    // The warp's peer, and its vectors of that peer's shard: neighbouring warps push to different peers.
    const uint32 warp = threadIdx.x / WARP_THREADS, lane = threadIdx.x % WARP_THREADS;
    const uint32 index = warp % peers;
    const uint32 peer = keep(successor(group, index));
    const ShardVector theirs(peer, keep(first + warp / peers * WARP_THREADS + lane), shard);
    const ShardVector ours(group.rank, keep(first + threadIdx.x), shard);
    const uint64 region = uint64{group.rank} * parameters.region_bytes;
    // A computed index, but into parameters that nothing writes to: they stay in constant memory.
    const Address push_address = keep(group.peers[index] + region + theirs.offset);
    const Address input_address = keep(input.address(theirs.index));
    const Address own_address = keep(input.address(ours.index));
    const bool sums = threadIdx.x < chunk;
    const uint32 is_theirs_whole = keep(input.is_whole(theirs.index) ? 1u : 0u);
    const uint32 is_own_whole = keep(sums && input.is_whole(ours.index) ? 1u : 0u);
    const VectorRoutes<capacity> routes(group, region + ours.offset, ours.offset, parameters.region_bytes);
    const Address arrival = keep(group.own + uint64{peer} * parameters.region_bytes + to_sums + theirs.offset);
    const ControlReader control_reader(group);
    // Nothing of the above is moved behind a branch, and so behind the wait.
    if (shard == 0) {
        ptx::wait_for_prior_grids();
        return;
    }
    ptx::wait_for_prior_grids();

    // All loads before the first use of any.
    Vector pushed = Source::load_if(is_theirs_whole != 0, input_address);
    Vector own = Source::load_if(is_own_whole != 0, own_address);
    const Control control = control_reader.read();
    const uint64 slot = control.slot_offset;
    input.add_tail(theirs.index, input_address, pushed);
    const bool active = theirs.is_there && control.failed == 0;
    if (active) {
        ptx::store_system(push_address + slot, scrub(pushed));
    }
    ptx::launch_dependents();
    finish_control(group, control, parameters.region_bytes);

    if (sums) {
        input.add_tail(ours.index, own_address, own);
        const bool awaits = ours.is_there && control.failed == 0;
        own = scrub(own);
        spoil_if(control.failed != 0, own);
        RankVectors<capacity> vectors;
        vectors.fill(own);
        const bool complete = routes.await_peers(slot, awaits, vectors);
        const Vector sum = Sink::reduce(vectors, group);
        // A sum of what did not come must not travel.
        if (awaits && complete) {
            routes.push_to_all(slot + to_sums, sum);
        }
        output.store(ours.index, output.address(ours.index), sum);
    }
    Vector sum{{0, 0, 0, 0}};
    spoil_if(control.failed != 0, sum);
    if (active) {
        await_result(group, peer, arrival + slot, sum);
    }
    output.store(theirs.index, output.address(theirs.index), sum);
}

}  // namespace lamport
