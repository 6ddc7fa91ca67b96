// Two shots for rows. Rank `token % world_size` owns a row: it sums the row, adds the residual and pushes the result;
// every rank normalises it for itself.
#pragma once

#include "device/reduce.cuh"
#include "protocol/control.cuh"
#include "protocol/vector_routes.cuh"

namespace lamport {

// Region r has two halves: rank r's contributions to the rows that the reader owns, and the rows that rank r owns.
template <class Source, class Sink, uint32 capacity>
__device__ __forceinline__ void rows_two_shot(const typename Sink::Parameters& parameters) {
    __shared__ typename Sink::Shared shared;
    const Group& group = parameters.group;
    if (is_speaking_block()) {
        Sink::speak(parameters);
        return;
    }
    const Source source(parameters);
    Sink rows(parameters, shared);
    const uint64 to_results = parameters.region_bytes / 2;
    const VectorRoutes<capacity> routes(group, uint64{group.rank} * parameters.region_bytes, 0,
                                        parameters.region_bytes);
    const ControlReader control_reader(group);
    const auto first = source.prepare(rows);
    // Nothing of the above is moved behind a branch, and so behind the wait.
    if (parameters.tokens == 0) {
        ptx::wait_for_prior_grids();
        return;
    }
    ptx::wait_for_prior_grids();

    // Both loads before the first use of either.
    const Control control = control_reader.read();
    Vector own = source.load_prepared(rows, first);
    const auto is_active = [&](uint32 column) { return rows.has(column) && control.failed == 0; };
    bool first_row = true;
    while (true) {
        const uint32 owner = rows.token() % group.world_size;
        const bool is_owner = owner == group.rank;
        const uint32 place = rows.token() / group.world_size * parameters.row_vectors;
        rows.for_each_column([&](uint32 column) {
            if (!first_row || column != threadIdx.x) {
                own = source.load(rows, column);
            }
            own = scrub(own);
            if (!is_owner && is_active(column)) {
                routes.push_to_rank(owner, control.slot_offset + uint64{place + column} * VECTOR_BYTES, own);
            }
        });
        if (first_row) {
            ptx::launch_dependents();
            finish_control(group, control, parameters.region_bytes);
            first_row = false;
        } else {
            // The partials of the row before have been read.
            __syncthreads();
        }
        rows.for_each_column([&](uint32 column) {
            const uint64 contribution = control.slot_offset + uint64{place + column} * VECTOR_BYTES;
            const uint64 result = contribution + to_results;
            Vector row{{0, 0, 0, 0}};
            spoil_if_failed(control, row);
            if (is_owner) {
                rows.load_residual(column);
                if constexpr (!Sink::HELD) {
                    own = scrub(source.load(rows, column));
                }
                spoil_if_failed(control, own);
                RankVectors<capacity> vectors;
                vectors.fill(own);
                const bool complete = routes.await_peers(contribution, is_active(column), vectors);
                row = rows.add_up(vectors);
                // A sum of what did not come must not travel.
                if (complete && is_active(column)) {
                    routes.push_to_all(result, row);
                }
                rows.load_weights(column);
            } else {
                rows.load_weights(column);
                if (is_active(column)) {
                    routes.await_result(owner, result, row);
                }
            }
            rows.take(column, row);
        });
        rows.finish();
        if (!rows.advance()) {
            break;
        }
    }
}

}  // namespace lamport
