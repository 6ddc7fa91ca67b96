// MiniMax normalisation of rows of any width: each is read twice, the second time from the cache.
#pragma once

#include "minimax_exchange.cuh"

namespace lamport {

// Vectors of the row that a thread has in flight at a time. Loads beyond the end load the last vector again, because a
// condition between two loads would make the second wait for the first.
constexpr uint32 WIDE_VECTORS = 4;

// One row a block.
template <uint32 matrices, class Value, class Weight>
__device__ __forceinline__ void minimax_wide(const MinimaxParameters<matrices>& parameters) {
    __shared__ MinimaxShared<matrices, 1> shared;
    ptx::launch_dependents();
    const MinimaxPlace place(parameters);
    const MinimaxMatrix& matrix = place.matrix;
    const uint32 token = blockIdx.x;
    const uint32 end = place.has_matrix ? matrix.vectors : 0;
    const uint32 stride = place.threads();
    const Address input = matrix.input + uint64{token} * matrix.input_row_bytes;
    MinimaxExchange<matrices, 1> exchange(parameters, shared, place, token);
    ptx::wait_for_prior_grids();

    if (exchange.in_service_warp()) {
        exchange.read_control();
    } else {
        float sums[1] = {0.0f};
        for (uint32 first = place.thread; first < end; first += WIDE_VECTORS * stride) {
            Vector rows[WIDE_VECTORS];
#pragma unroll
            for (uint32 v = 0; v < WIDE_VECTORS; ++v) {
                rows[v] = ptx::load_input(input + uint64{min(first + v * stride, end - 1)} * VECTOR_BYTES);
            }
#pragma unroll
            for (uint32 v = 0; v < WIDE_VECTORS; ++v) {
                const float squares = sum_of_squares<Value>(rows[v]);
                sums[0] += first + v * stride < end ? squares : 0.0f;
            }
        }
        exchange.put_sums(place, sums);
    }
    exchange.run();
    if (exchange.in_service_warp()) {
        return;
    }

    float scales[1];
    exchange.scales(place, scales);
    const Address output = matrix.output + uint64{token} * matrix.output_row_bytes;
    for (uint32 first = place.thread; first < end; first += WIDE_VECTORS * stride) {
        Vector rows[WIDE_VECTORS];
        VectorWeights<Value, Weight> weights[WIDE_VECTORS];
#pragma unroll
        for (uint32 v = 0; v < WIDE_VECTORS; ++v) {
            const uint64 vector = min(first + v * stride, end - 1);
            rows[v] = ptx::load_input(input + vector * VECTOR_BYTES);
            weights[v].load(matrix.weight + vector * VectorWeights<Value, Weight>::BYTES);
        }
#pragma unroll
        for (uint32 v = 0; v < WIDE_VECTORS; ++v) {
            const uint32 vector = first + v * stride;
            if (vector < end) {
                const Vector result = weights[v].apply(rows[v], scales[0]);
                ptx::store_output(output + uint64{vector} * VECTOR_BYTES, result);
            }
        }
    }
}

}  // namespace lamport
