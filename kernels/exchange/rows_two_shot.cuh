// Two shots for rows. Rank `token % world_size` owns a row: it sums the row, adds the residual and pushes the result;
// every rank normalises it for itself.
#pragma once

#include "device/reduce.cuh"
#include "exchange/own_vectors.cuh"
#include "protocol/control.cuh"
#include "protocol/vector_routes.cuh"

namespace lamport {

// Whose a row is, and where it lies.
struct OwnedRow {
    __device__ __forceinline__ OwnedRow(const Group& group, uint32 token, uint32 row_vectors)
        : owner(token % group.world_size), place(uint64{token / group.world_size} * row_vectors * VECTOR_BYTES) {}

    uint32 owner;
    // Bytes from the start of a region's half.
    uint64 place;
};

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
    const uint64 region = uint64{group.rank} * parameters.region_bytes;
    const uint64 to_results = parameters.region_bytes / 2;
    // What is loaded before the first vector is awaited, and computed before the wait: there are no registers for it
    // where a thread has more than two vectors.
    constexpr bool LOADS_EARLY = Sink::VECTORS == 2;
    constexpr bool KEEPS_WAY = Sink::VECTORS == 1 || Sink::VECTORS == 2;
    // Where a thread keeps its vectors, the way of the first is known before the wait.
    const uint32 first_column = Sink::VECTORS > 0 ? threadIdx.x : 0;
    OwnedRow row(group, rows.token(), parameters.row_vectors);
    bool is_owner = row.owner == group.rank;
    const uint64 first_place = row.place + uint64{first_column} * VECTOR_BYTES;
    // Of contributions to the present row, and to the first one; then that of results.
    const auto contribution = [&] { return block_of(group, row.owner) + region + first_place; };
    const Address first_contribution = KEEPS_WAY && !is_owner ? keep(contribution()) : 0;
    const VectorRoutes<capacity> routes(group, region + to_results + first_place, first_place, parameters.region_bytes);
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
    // Bytes from the block's first row to the present one.
    uint64 distance = 0;
    const auto offset = [&](uint32 column) {
        return control.slot_offset + distance + uint64{column - first_column} * VECTOR_BYTES;
    };
    const auto is_active = [&](uint32 column) { return rows.has(column) && control.failed == 0; };
    rows.for_each_column([&](Column column) {
        const Vector& vector = own.of_first_row(column);
        if (!is_owner && is_active(column)) {
            ptx::store_system((KEEPS_WAY ? first_contribution : contribution()) + offset(column), vector);
        }
    });
    ptx::launch_dependents();
    finish_control(group, control, parameters.region_bytes);
    while (true) {
        if constexpr (LOADS_EARLY) {
            rows.for_each_column([&](Column column) {
                if (is_owner) {
                    rows.load_residual(column);
                }
                rows.load_weights(column);
            });
        }
        rows.for_each_column([&](Column column) {
            Vector sum{{0, 0, 0, 0}};
            spoil_if(control.failed != 0, sum);
            if (is_owner) {
                if constexpr (!LOADS_EARLY) {
                    rows.load_residual(column);
                }
                Vector& vector = own.pushed(column);
                spoil_if(control.failed != 0, vector);
                RankVectors<capacity> vectors;
                vectors.fill(vector);
                const bool complete = routes.await_peers(offset(column), is_active(column), vectors);
                sum = rows.add_up(vectors, column);
                // A sum of what did not come must not travel.
                if (complete && is_active(column)) {
                    routes.push_to_all(offset(column), sum);
                }
                if constexpr (!LOADS_EARLY) {
                    rows.load_weights(column);
                }
            } else {
                if constexpr (!LOADS_EARLY) {
                    rows.load_weights(column);
                }
                if (is_active(column)) {
                    routes.await_result(row.owner, offset(column) + to_results, sum);
                }
            }
            rows.take(column, sum);
        });
        rows.finish();
        if (!rows.advance()) {
            break;
        }
        const uint64 place_before = row.place;
        row = OwnedRow(group, rows.token(), parameters.row_vectors);
        is_owner = row.owner == group.rank;
        distance += row.place - place_before;
        own.load_next_row();
        rows.for_each_column([&](Column column) {
            const Vector& vector = own.of_next_row(column);
            if (!is_owner && is_active(column)) {
                ptx::store_system(contribution() + offset(column), vector);
            }
        });
        // The partials of the row before have been read.
        __syncthreads();
    }
}

}  // namespace lamport
