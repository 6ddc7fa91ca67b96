// One-shot all-reduce + residual + RMSNorm: every rank sums every row. The macros choose one of the variants.
#include "all_reduce_rms_norm.cuh"

namespace lamport {

template <class Value, uint32 capacity, bool held>
__device__ __forceinline__ void all_reduce_rms_norm_one_shot(const AllReduceRmsNormParameters& parameters) {
    __shared__ WarpPartials partials;
    const Group& group = parameters.group;
    if (is_speaking_block()) {
        speak_for_norm(parameters);
        return;
    }
    RmsNormRows<Value, held> rows(parameters, partials);
    const uint64 row_bytes = uint64{parameters.row_vectors} * VECTOR_BYTES;
    const uint64 place = rows.token() * row_bytes;
    const VectorRoutes<capacity> routes(group, uint64{group.rank} * parameters.region_bytes + place, place,
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
    // Vectors from the block's first row to the present one.
    uint32 distance = 0;
    const auto offset = [&](uint32 column) { return control.slot_offset + uint64{distance + column} * VECTOR_BYTES; };
    const auto is_active = [&](uint32 column) { return rows.has(column) && control.failed == 0; };
    bool first_row = true;
    while (true) {
        rows.for_each_column([&](uint32 column) {
            if (!first_row || column != threadIdx.x) {
                own = rows.load(parameters.input, column);
            }
            own = scrub(own);
            if (is_active(column)) {
                routes.push_to_all(offset(column), own);
            }
        });
        if (first_row) {
            finish_control(group, control, parameters.region_bytes);
            // Here all of the block has pushed.
            ptx::launch_dependents();
            first_row = false;
        } else {
            // The partials of the row before have been read.
            __syncthreads();
        }
        rows.for_each_column([&](uint32 column) {
            rows.load_residual(column);
            rows.load_weights(column);
            if constexpr (!held) {
                own = scrub(rows.load(parameters.input, column));
            }
            RankVectors<capacity> vectors;
            vectors.fill(own);
            routes.await_peers(offset(column), is_active(column), vectors);
            rows.take(column, rows.add_up(vectors));
        });
        rows.normalise();
        if (!rows.advance()) {
            break;
        }
        distance += data_blocks() * parameters.row_vectors;
    }
}

}  // namespace lamport

extern "C" __global__ void __launch_bounds__(LAMPORT_MAX_THREADS, LAMPORT_MIN_BLOCKS)
    all_reduce_rms_norm_one_shot(const __grid_constant__ lamport::AllReduceRmsNormParameters parameters) {
    lamport::all_reduce_rms_norm_one_shot<lamport::LAMPORT_VALUE, LAMPORT_CAPACITY, LAMPORT_HELD>(parameters);
}
