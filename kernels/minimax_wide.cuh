// MiniMax normalisation of rows of any width: each is read twice, the second time from the cache.
#pragma once

#include "minimax_exchange.cuh"

namespace lamport {

// One row a block.
template <uint32 matrices, class Value, class Weight>
__device__ __forceinline__ void minimax_wide(const MinimaxParameters<matrices>& parameters) {
    __shared__ MinimaxShared<matrices, 1> shared;
    ptx::launch_dependents();
    const MinimaxPlace place(parameters);
    const MinimaxMatrix& matrix = place.matrix;
    const uint32 token = blockIdx.x;
    const uint32 end = place.has_matrix ? matrix.vectors : 0;
    MinimaxExchange<matrices, 1> exchange(parameters, shared, token);
    ptx::wait_for_prior_grids();

    const Address input = matrix.input + uint64{token} * matrix.input_row_bytes;
    if (exchange.in_service_warp()) {
        exchange.read_control();
    } else {
        float sums[1] = {0.0f};
#pragma unroll 4
        for (uint32 vector = place.thread; vector < end; vector += place.threads()) {
            sums[0] += sum_of_squares<Value>(ptx::load_input(input + uint64{vector} * VECTOR_BYTES));
        }
        const float sum = warp_sums(sums);
        if (place.has_matrix && threadIdx.x % WARP_THREADS == 0) {
            shared.partials[place.index].values[place.warp] = sum;
        }
    }
    exchange.run();
    if (exchange.in_service_warp()) {
        return;
    }

    float scales[1];
    exchange.scales(place, scales);
    const Address output = matrix.output + uint64{token} * matrix.output_row_bytes;
#pragma unroll 2
    for (uint32 vector = place.thread; vector < end; vector += place.threads()) {
        VectorWeights<Value, Weight> weights;
        weights.load(matrix.weight + uint64{vector} * weights.BYTES);
        const Vector row = ptx::load_input(input + uint64{vector} * VECTOR_BYTES);
        ptx::store_output(output + uint64{vector} * VECTOR_BYTES, weights.apply(row, scales[0]));
    }
}

}  // namespace lamport
