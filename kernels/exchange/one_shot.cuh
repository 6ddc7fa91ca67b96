// One shot: every rank pushes all of its tensor to every peer, and each reduces for itself. One way over the link; best
// for small tensors.
#pragma once

#include "protocol/control.cuh"
#include "protocol/vector_routes.cuh"

namespace lamport {

// A thread has one vector; large tensors take several rounds. The block's last warp has none: it is the service warp.
template <class Source, class Sink, uint32 capacity>
__device__ __forceinline__ void one_shot(const typename Sink::Parameters& parameters) {
    const Group& group = parameters.group;
    if (is_speaking_block()) {
        Sink::speak(parameters);
        return;
    }
    const Source input(parameters);
    const Sink output(parameters);
    const uint32 workers = blockDim.x - WARP_THREADS;
    const uint32 threads = data_blocks() * workers;
    uint32 at = data_block() * workers + threadIdx.x;
    const uint64 place = uint64{at} * VECTOR_BYTES;
    const Address input_address = keep(input.address(at));
    const uint32 is_whole = keep(input.is_whole(at) ? 1u : 0u);
    const VectorRoutes<capacity> routes(group, uint64{group.rank} * parameters.region_bytes + place, place,
                                        parameters.region_bytes);
    const ControlReader control_reader(group);
    // The ranks to hear from, a bit each: none, where a vector is beyond the tensor.
    uint32 awaited = keep(at < parameters.vectors ? all_peers(group) : 0);
    Address output_address = keep(output.address(at));
    // Nothing of the above is moved behind a branch, and so behind the wait.
    if (threadIdx.x >= workers) {
        ptx::wait_for_prior_grids();
        serve(group, control_reader.read(), parameters.region_bytes);
        return;
    }
    ptx::wait_for_prior_grids();

    // Both loads before the first use of either.
    Vector own = Source::load_if(is_whole != 0, input_address);
    const Control control = control_reader.read();
    input.add_tail(at, input_address, own);
    own = scrub(own);
    uint64 offset = control.slot_offset;
    if (awaited != 0 && control.failed == 0) {
        routes.push_to_all(offset, own);
    }
    control_is_used(control);
    // Not in the service warp, which would call it before the push: the first thread of a block to call it calls it for
    // all, and the next grid's blocks delay this one's loads and pushes.
    ptx::launch_dependents();
    while (control.failed == 0) {
        RankVectors<capacity> vectors;
        vectors.fill(own);
        routes.await_all(offset, [&](uint32 rank) { return (awaited >> rank & 1) != 0; }, vectors);
        output.store(at, output_address, Sink::reduce(vectors, group));
        at += threads;
        if (at - threadIdx.x >= parameters.vectors) {
            return;
        }
        offset += uint64{threads} * VECTOR_BYTES;
        awaited = at < parameters.vectors ? all_peers(group) : 0;
        output_address = output.address(at);
        own = input.load_whole(at, input.address(at));
        input.add_tail(at, input.address(at), own);
        own = scrub(own);
        if (awaited != 0) {
            routes.push_to_all_anew(offset, own);
        }
    }
    // The rank has failed: nothing was sent, and nothing is awaited.
    for (; at < parameters.vectors; at += threads) {
        output.store(at, output.address(at), nan_vector());
    }
}

}  // namespace lamport
