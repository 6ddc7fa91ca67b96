// MiniMax normalisation of rows that fit into the block's registers: each is read once.
#pragma once

#include "minimax.cuh"

namespace lamport {

// `tokens` rows a block, `vectors` 16-byte vectors of each row a thread. Vector v of thread i is number
// i + v * threads of its matrix, so that a warp's accesses are contiguous.
template <uint32 matrices, uint32 tokens, uint32 vectors, class Value, class Weight>
__device__ __forceinline__ void minimax_in_registers(const MinimaxParameters<matrices>& parameters) {
    __shared__ MinimaxShared<matrices, tokens> shared;
    ptx::launch_dependents();

    // Before the wait: everything that no earlier kernel writes.
    const MinimaxPlace place(parameters);
    const MinimaxMatrix& matrix = place.matrix;
    const uint32 first_token = blockIdx.x * tokens;
    shared.pad(parameters);
    bool inside[vectors];
    // Threads and tokens beyond the end work on the first vector and the last token, and their results go nowhere:
    // no load is conditional, so all of them are in flight before the first is used.
    uint64 column_bytes[vectors];
    VectorWeights<Value, Weight> weights[vectors];
#pragma unroll
    for (uint32 v = 0; v < vectors; ++v) {
        const uint32 vector = place.thread + v * place.threads();
        inside[v] = place.has_matrix && vector < matrix.vectors;
        column_bytes[v] = inside[v] ? uint64{vector} * VECTOR_BYTES : 0;
        weights[v].load(matrix.weight + column_bytes[v] * VectorWeights<Value, Weight>::VECTORS);
    }
    const MinimaxExchange<matrices, tokens> exchange(parameters, place, first_token);
    const ControlReader control_reader(parameters.group);
    const uint32 count = parameters.tokens;
    const Address output = matrix.output + uint64{first_token} * matrix.output_row_bytes;
    ptx::wait_for_prior_grids();

    Control control;
    if (in_last_warp()) {
        control = control_reader.read();
    }
    Vector rows[tokens][vectors];
#pragma unroll
    for (uint32 t = 0; t < tokens; ++t) {
        const uint32 token = min(first_token + t, count - 1);
        const Address row = matrix.input + uint64{token} * matrix.input_row_bytes;
#pragma unroll
        for (uint32 v = 0; v < vectors; ++v) {
            rows[t][v] = ptx::load_input(row + column_bytes[v]);
        }
    }
    if (threadIdx.x == blockDim.x - 1) {
        shared.control = control;
    }

    float sums[tokens];
#pragma unroll
    for (uint32 t = 0; t < tokens; ++t) {
        sums[t] = 0.0f;
#pragma unroll
        for (uint32 v = 0; v < vectors; ++v) {
            sums[t] += inside[v] ? sum_of_squares<Value>(rows[t][v]) : 0.0f;
        }
    }
    const float sum = warp_sums(sums);
    const uint32 lane = threadIdx.x % WARP_THREADS;
    if (place.has_matrix && lane % LANES_PER_SUM<tokens> == 0) {
        const uint32 token = lane / LANES_PER_SUM<tokens>;
        shared.partials[token * matrices + place.index].values[place.warp] = sum;
    }

    float scales[tokens];
    exchange.run(shared, scales);
#pragma unroll
    for (uint32 t = 0; t < tokens; ++t) {
        const Address row = output + t * matrix.output_row_bytes;
#pragma unroll
        for (uint32 v = 0; v < vectors; ++v) {
            const Vector result = weights[v].apply(rows[t][v], scales[t]);
            if (inside[v] && first_token + t < count) {
                ptx::store_output(row + column_bytes[v], result);
            }
        }
    }
}

}  // namespace lamport
