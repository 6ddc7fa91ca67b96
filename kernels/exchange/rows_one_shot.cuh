// One shot for rows: every rank pushes all of its rows to every peer, and each reduces every row for itself.
#pragma once

#include "device/reduce.cuh"
#include "exchange/own_vectors.cuh"
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
    // Where a thread keeps its vectors, the way of the first is known before the wait.
    const uint32 first_column = Sink::VECTORS > 0 ? threadIdx.x : 0;
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

    // All loads before the first use of any.
    const Control control = control_reader.read();
    OwnVectors<Source, Sink> own(source, rows, first);
    // Vectors from the block's first row to the present one.
    uint32 distance = 0;
    const auto offset = [&](uint32 column) {
        return control.slot_offset + uint64{distance + column - first_column} * VECTOR_BYTES;
    };
    const auto is_active = [&](uint32 column) { return rows.has(column) && control.failed == 0; };
    rows.for_each_column([&](Column column) {
        const Vector& vector = own.of_first_row(column);
        if (is_active(column)) {
            routes.push_to_all(offset(column), vector);
        }
    });
    finish_control(group, control, parameters.region_bytes);
    // Here all of the block has pushed.
    ptx::launch_dependents();
    while (true) {
        if constexpr (Sink::VECTORS > 1) {
            rows.for_each_column([&](Column column) {
                rows.load_residual(column);
                rows.load_weights(column);
            });
        }
        rows.for_each_column([&](Column column) {
            if constexpr (Sink::VECTORS <= 1) {
                rows.load_residual(column);
                rows.load_weights(column);
            }
            Vector& vector = own.pushed(column);
            spoil_if(control.failed != 0, vector);
            RankVectors<capacity> vectors;
            vectors.fill(vector);
            routes.await_peers(offset(column), is_active(column), vectors);
            rows.take(column, rows.add_up(vectors, column));
        });
        rows.finish();
        if (!rows.advance()) {
            break;
        }
        distance += data_blocks() * parameters.row_vectors;
        own.load_next_row();
        rows.for_each_column([&](Column column) {
            const Vector& vector = own.of_next_row(column);
            if (is_active(column)) {
                routes.push_to_all_anew(offset(column), vector);
            }
        });
        // The partials of the row before have been read.
        __syncthreads();
    }
}

}  // namespace lamport
