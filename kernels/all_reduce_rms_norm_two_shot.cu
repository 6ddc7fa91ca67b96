// Two-shot all-reduce + residual + RMSNorm. Rank `token % world_size` owns a row: it sums the row, adds the residual
// and pushes the result; every rank normalises it for itself. The macros choose one of the variants.
#include "all_reduce_rms_norm.cuh"

namespace lamport {

// Region r has two halves: rank r's contributions to the rows that the reader owns, and the rows that rank r owns.
template <class Value, uint32 capacity, bool held>
__device__ __forceinline__ void all_reduce_rms_norm_two_shot(const AllReduceRmsNormParameters& parameters) {
    __shared__ WarpPartials partials;
    const Group& group = parameters.group;
    RmsNormRows<Value, held> rows(parameters, partials);
    const uint64 to_results = parameters.region_bytes / 2;
    const VectorRoutes<capacity> routes(group, uint64{group.rank} * parameters.region_bytes, 0,
                                        parameters.region_bytes);
    const ControlReader control_reader(group);
    // Nothing of the above is moved behind a branch, and so behind the wait.
    if (parameters.tokens == 0) {
        ptx::wait_for_prior_grids();
        return;
    }
    ptx::wait_for_prior_grids();

    // Both loads before the first use of either.
    Vector own = rows.load(parameters.input, threadIdx.x);
    const Control control = control_reader.read();
    bool first_row = true;
    while (true) {
        const uint32 owner = rows.token() % group.world_size;
        const bool is_owner = owner == group.rank;
        const uint32 place = rows.token() / group.world_size * parameters.row_vectors;
        rows.for_each_column([&](uint32 column) {
            if (!first_row || column != threadIdx.x) {
                own = rows.load(parameters.input, column);
            }
            own = scrub(own);
            if (!is_owner && rows.has(column)) {
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
            if (is_owner) {
                rows.load_residual(column);
                if constexpr (!held) {
                    own = scrub(rows.load(parameters.input, column));
                }
                RankVectors<capacity> vectors;
                vectors.fill(own);
                const bool complete = routes.await_peers(contribution, rows.has(column), vectors);
                row = rows.add_up(vectors);
                // A sum of what did not come must not travel.
                if (complete && rows.has(column)) {
                    routes.push_to_all(result, row);
                }
                rows.load_weights(column);
            } else {
                rows.load_weights(column);
                if (rows.has(column)) {
                    routes.await_result(owner, result, row);
                }
            }
            rows.take(column, row);
        });
        rows.normalise();
        if (!rows.advance()) {
            break;
        }
    }
}

}  // namespace lamport

extern "C" __global__ void __launch_bounds__(LAMPORT_MAX_THREADS, LAMPORT_MIN_BLOCKS)
    all_reduce_rms_norm_two_shot(const __grid_constant__ lamport::AllReduceRmsNormParameters parameters) {
    lamport::all_reduce_rms_norm_two_shot<lamport::LAMPORT_VALUE, LAMPORT_CAPACITY, LAMPORT_HELD>(parameters);
}
