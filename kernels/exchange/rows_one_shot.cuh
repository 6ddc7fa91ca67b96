// One shot for rows: every rank pushes all of its rows to every peer, and each reduces every row for itself.
#pragma once

#include "device/reduce.cuh"
#include "protocol/control.cuh"
#include "protocol/vector_routes.cuh"

namespace lamport {

template <class Source, class Sink, uint32 capacity, class Parameters>
__device__ __forceinline__ void rows_one_shot(const Parameters& parameters) {
    __shared__ typename Sink::Shared shared;
    const Group& group = parameters.group;
    if (is_speaking_block()) {
        Sink::speak(parameters);
        return;
    }
    const Source source(parameters);
    Sink rows(parameters, shared);
    const uint64 row_bytes = uint64{parameters.row_vectors} * VECTOR_BYTES;
    // Of a held row a thread has one vector, whose way is known before the wait.
    const uint32 first_column = Sink::HELD ? threadIdx.x : 0;
    const uint64 place = rows.token() * row_bytes + uint64{first_column} * VECTOR_BYTES;
    const VectorRoutes<capacity> routes(group, uint64{group.rank} * parameters.region_bytes + place, place,
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
    // Vectors from the block's first row to the present one.
    uint32 distance = 0;
    const auto offset = [&](uint32 column) {
        return control.slot_offset + uint64{distance + column - first_column} * VECTOR_BYTES;
    };
    const auto is_active = [&](uint32 column) { return rows.has(column) && control.failed == 0; };
    rows.for_each_column([&](uint32 column) {
        if (column != threadIdx.x) {
            own = source.load(rows, column);
        }
        own = scrub(own);
        if (is_active(column)) {
            routes.push_to_all(offset(column), own);
        }
    });
    finish_control(group, control, parameters.region_bytes);
    // Here all of the block has pushed.
    ptx::launch_dependents();
    while (true) {
        rows.for_each_column([&](uint32 column) {
            rows.load_residual(column);
            rows.load_weights(column);
            if constexpr (!Sink::HELD) {
                own = scrub(source.load(rows, column));
            }
            spoil_if(control.failed != 0, own);
            RankVectors<capacity> vectors;
            vectors.fill(own);
            routes.await_peers(offset(column), is_active(column), vectors);
            rows.take(column, rows.add_up(vectors));
        });
        rows.finish();
        if (!rows.advance()) {
            break;
        }
        distance += data_blocks() * parameters.row_vectors;
        rows.for_each_column([&](uint32 column) {
            own = scrub(source.load(rows, column));
            if (is_active(column)) {
                routes.push_to_all_anew(offset(column), own);
            }
        });
        // The partials of the row before have been read.
        __syncthreads();
    }
}

}  // namespace lamport
