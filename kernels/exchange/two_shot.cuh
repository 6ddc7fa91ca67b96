// Two shots: every rank sums one shard of the tensor and pushes the sums to all. Two ways over the link, but each byte
// travels twice, not once per peer; best for large tensors. The halves follow each other vector by vector, with no
// barrier between them: a sum is its own flag too.
#pragma once

#include "protocol/control.cuh"
#include "protocol/vector_routes.cuh"

namespace lamport {

// What a thread contributes in a round: vector `at` of every shard. Loading and pushing are two steps, so that what the
// push needs beside can be loaded at the same time.
template <class Source, uint32 capacity>
class Contributions {
public:
    template <class Parameters>
    __device__ __forceinline__ Contributions(const Parameters& parameters, const Source& input)
        : group_(parameters.group), input_(input), shard_(parameters.vectors) {}

    // The place of vector `at` of a rank's shard in the tensor; that of no vector if it is beyond the shard.
    __device__ __forceinline__ uint32 place(uint32 rank, uint32 at) const {
        return at < shard_ ? rank * shard_ + at : ~0u;
    }

    __device__ __forceinline__ void load(uint32 at) {
#pragma unroll
        for (uint32 i = 0; i < capacity - 1; ++i) {
            const uint32 index = has_rank<capacity>(group_, i + 1) ? place(successor(group_, i), at) : ~0u;
            peers_[i] = input_.load_whole(index, input_.address(index));
        }
        const uint32 index = place(group_.rank, at);
        own_ = input_.load_whole(index, input_.address(index));
    }

    // Pushes those to the peers' shards if `active`, and returns the one to the own.
    __device__ __forceinline__ Vector push(bool active, uint32 at, uint64 offset,
                                           const VectorRoutes<capacity>& routes) {
#pragma unroll
        for (uint32 i = 0; i < capacity - 1; ++i) {
            if (active && has_rank<capacity>(group_, i + 1)) {
                const uint32 index = place(successor(group_, i), at);
                input_.add_tail(index, input_.address(index), peers_[i]);
                routes.push(i, offset, scrub(peers_[i]));
            }
        }
        const uint32 index = place(group_.rank, at);
        input_.add_tail(index, input_.address(index), own_);
        return scrub(own_);
    }

private:
    const Group& group_;
    const Source& input_;
    uint32 shard_;
    // In the order of Group::peers.
    Vector peers_[capacity - 1];
    Vector own_;
};

// A thread has vector `at` of every shard; large tensors take several rounds. Region r has two halves: rank r's
// contributions to the own shard, and rank r's sums.
template <class Source, class Sink, uint32 capacity>
__device__ __forceinline__ void two_shot(const typename Sink::Parameters& parameters) {
    const Group& group = parameters.group;
    if (is_speaking_block()) {
        Sink::speak(parameters);
        return;
    }
    const Source input(parameters);
    const Sink output(parameters);
    const uint32 shard = parameters.vectors;
    const uint32 threads = data_blocks() * blockDim.x;
    uint32 at = data_block() * blockDim.x + threadIdx.x;
    const uint64 to_sums = uint64{shard} * VECTOR_BYTES;
    const VectorRoutes<capacity> routes(group, uint64{group.rank} * parameters.region_bytes, 0,
                                        parameters.region_bytes);
    const ControlReader control_reader(group);
    // Nothing of the above is moved behind a branch, and so behind the wait.
    if (shard == 0) {
        ptx::wait_for_prior_grids();
        return;
    }
    ptx::wait_for_prior_grids();

    // All loads before the first use of any.
    Contributions<Source, capacity> contributions(parameters, input);
    contributions.load(at);
    const Control control = control_reader.read();
    uint64 offset = control.slot_offset + uint64{at} * VECTOR_BYTES;
    bool active = at < shard && control.failed == 0;
    Vector own = contributions.push(active, at, offset, routes);
    ptx::launch_dependents();
    finish_control(group, control, parameters.region_bytes);
    while (true) {
        spoil_if(control.failed != 0, own);
        RankVectors<capacity> vectors;
        vectors.fill(own);
        const bool complete = routes.await_peers(offset, active, vectors);
        const Vector sum = Sink::reduce(vectors, group);
        // A sum of what did not come must not travel.
        if (active && complete) {
            routes.push_to_all(offset + to_sums, sum);
        }
        const uint32 own_place = contributions.place(group.rank, at);
        output.store(own_place, output.address(own_place), sum);
        vectors.fill_own(group.rank, sum, control.failed != 0 ? NAN_WORD : 0);
        routes.template await_peers<Awaited::second_hand>(offset + to_sums, active, vectors);
#pragma unroll
        for (uint32 rank = 0; rank < capacity; ++rank) {
            if (routes.is_peer(rank)) {
                const uint32 place = contributions.place(rank, at);
                output.store(place, output.address(place), vectors.of[rank]);
            }
        }
        at += threads;
        if (at - threadIdx.x >= shard) {
            break;
        }
        offset += uint64{threads} * VECTOR_BYTES;
        contributions.load(at);
        active = at < shard && control.failed == 0;
        own = contributions.push(active, at, offset, routes);
    }
}

}  // namespace lamport
