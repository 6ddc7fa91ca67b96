// MiniMax normalisation of rows that fit into the block's registers: each is read once.
#pragma once

#include "minimax_exchange.cuh"

namespace lamport {

// `tokens` rows a block, `vectors` 16-byte vectors of each row a thread. Vector v of thread i is number
// i + v * threads of its matrix, so that a warp's accesses are contiguous.
template <uint32 matrices, uint32 tokens, uint32 vectors, class Value, class Weight>
__device__ __forceinline__ void minimax_in_registers(const MinimaxParameters<matrices>& parameters) {
    __shared__ MinimaxShared<matrices, tokens> storage;
    ptx::launch_dependents();
    MinimaxShared<matrices, tokens>& shared = keep_object(storage);

    // Before the wait: everything that no earlier kernel writes.
    const MinimaxPlace place(parameters);
    const MinimaxMatrix& matrix = place.matrix;
    const uint32 first_token = blockIdx.x * tokens;
    const uint32 end_token = parameters.tokens;
    // Threads and tokens beyond the end work on the first vector and the last token, and their results go nowhere:
    // no load is conditional, so all of them are in flight before the first is used.
    bool inside[vectors];
    uint64 column_bytes[vectors];
    constexpr bool weights_late = tokens * vectors >= 4;
    VectorWeights<Value, Weight> weights[vectors];
#pragma unroll
    for (uint32 v = 0; v < vectors; ++v) {
        const uint32 vector = place.thread + v * place.threads();
        inside[v] = place.has_matrix && vector < matrix.vectors;
        column_bytes[v] = inside[v] ? uint64{vector} * VECTOR_BYTES : 0;
        if constexpr (!weights_late) {
            weights[v].load(matrix.weight + column_bytes[v] * VectorWeights<Value, Weight>::VECTORS);
        }
    }
    const uint32 own_tokens = min(tokens, end_token - first_token);
    const uint32 row_bytes = keep(matrix.input_row_bytes);
    Address row_begin[vectors];
#pragma unroll
    for (uint32 v = 0; v < vectors; ++v) {
        row_begin[v] = keep(matrix.input + uint64{first_token} * row_bytes + column_bytes[v]);
    }
    // Last before the wait: its branches also keep the assembler from moving the above behind the wait.
    MinimaxExchange<matrices, tokens> exchange(parameters, shared, place, first_token);
    ptx::wait_for_prior_grids();

    Vector rows[tokens][vectors];
    if (exchange.in_service_warp()) {
        exchange.read_control();
    } else {
#pragma unroll
        for (uint32 t = 0; t < tokens; ++t) {
            const uint64 distance = uint64{min(t, own_tokens - 1)} * row_bytes;
#pragma unroll
            for (uint32 v = 0; v < vectors; ++v) {
                rows[t][v] = ptx::load_input(row_begin[v] + distance);
            }
        }
        float sums[tokens];
#pragma unroll
        for (uint32 t = 0; t < tokens; ++t) {
            sums[t] = 0.0f;
#pragma unroll
            for (uint32 v = 0; v < vectors; ++v) {
                const float squares = sum_of_squares<Value>(rows[t][v]);
                sums[t] += inside[v] ? squares : 0.0f;
            }
        }
        const float sum = warp_sums(sums);
        const uint32 lane = threadIdx.x % WARP_THREADS;
        if (place.has_matrix && lane % LANES_PER_SUM<tokens> == 0) {
            const uint32 token = lane / LANES_PER_SUM<tokens>;
            shared.partials[token * matrices + place.index].values[place.warp] = sum;
        }
        if constexpr (weights_late) {
#pragma unroll
            for (uint32 v = 0; v < vectors; ++v) {
                weights[v].load(matrix.weight + column_bytes[v] * VectorWeights<Value, Weight>::VECTORS);
            }
        }
    }
    exchange.run();
    if (exchange.in_service_warp()) {
        return;
    }

    float scales[tokens];
    exchange.scales(place, scales);

    Address row = matrix.output + uint64{first_token} * matrix.output_row_bytes + column_bytes[0];
    uint32 row_distance = matrix.output_row_bytes;
    if constexpr (tokens > 1) {
        // Or the assembler computes the whole address anew for each token.
        row = keep(row);
        row_distance = keep(row_distance);
    }
#pragma unroll
    for (uint32 t = 0; t < tokens; ++t) {
#pragma unroll
        for (uint32 v = 0; v < vectors; ++v) {
            const Vector result = weights[v].apply(rows[t][v], scales[t]);
            if (inside[v] && t < own_tokens) {
                ptx::store_output(row + (column_bytes[v] - column_bytes[0]), result);
            }
        }
        row += row_distance;
    }
}

}  // namespace lamport
