// MiniMax normalisation of rows that fit into the block's registers: each is read once.
#pragma once

#include "minimax_exchange.cuh"

namespace lamport {

// The part of a block's rows that a thread holds: of each of `tokens` rows, `vectors` 16-byte vectors. Vector v of
// thread i is number i + v * threads of its matrix, so that a warp's accesses are contiguous.
//
// Threads and tokens beyond the end work on the first vector and the last token, and their results go nowhere: no load
// is conditional, so all of them are in flight before the first is used.
template <uint32 tokens, uint32 vectors, class Value, class Weight>
class RegisterRows {
public:
    __device__ __forceinline__ RegisterRows(const MinimaxPlace& place, uint32 first_token, uint32 end_token)
        : matrix_(place.matrix),
          first_token_(first_token),
          own_tokens_(min(tokens, end_token - first_token)),
          row_bytes_(keep(place.matrix.input_row_bytes)) {
#pragma unroll
        for (uint32 v = 0; v < vectors; ++v) {
            const uint32 vector = place.thread + v * place.threads();
            inside_[v] = place.has_matrix && vector < matrix_.vectors;
            column_bytes_[v] = inside_[v] ? uint64{vector} * VECTOR_BYTES : 0;
            begin_[v] = keep(matrix_.input + uint64{first_token} * row_bytes_ + column_bytes_[v]);
        }
    }

    __device__ __forceinline__ void load_weights() {
#pragma unroll
        for (uint32 v = 0; v < vectors; ++v) {
            weights_[v].load(matrix_.weight + column_bytes_[v] * VectorWeights<Value, Weight>::VECTORS);
        }
    }

    __device__ __forceinline__ void load_rows() {
#pragma unroll
        for (uint32 t = 0; t < tokens; ++t) {
            const uint64 distance = uint64{min(t, own_tokens_ - 1)} * row_bytes_;
#pragma unroll
            for (uint32 v = 0; v < vectors; ++v) {
                rows_[t][v] = ptx::load_input(begin_[v] + distance);
            }
        }
    }

    // The sums of squares, one per token.
    __device__ __forceinline__ void sums_of_squares(float (&sums)[tokens]) const {
#pragma unroll
        for (uint32 t = 0; t < tokens; ++t) {
            sums[t] = 0.0f;
#pragma unroll
            for (uint32 v = 0; v < vectors; ++v) {
                const float squares = sum_of_squares<Value>(rows_[t][v]);
                sums[t] += inside_[v] ? squares : 0.0f;
            }
        }
    }

    // Scales and stores the rows.
    __device__ __forceinline__ void normalise(const float (&scales)[tokens]) const {
        Address row = matrix_.output + uint64{first_token_} * matrix_.output_row_bytes + column_bytes_[0];
        uint32 distance = matrix_.output_row_bytes;
        if constexpr (tokens > 1) {
            // Or the assembler computes the whole address anew for each token.
            row = keep(row);
            distance = keep(distance);
        }
#pragma unroll
        for (uint32 t = 0; t < tokens; ++t) {
#pragma unroll
            for (uint32 v = 0; v < vectors; ++v) {
                const Vector result = weights_[v].apply(rows_[t][v], scales[t]);
                if (inside_[v] && t < own_tokens_) {
                    ptx::store_output(row + (column_bytes_[v] - column_bytes_[0]), result);
                }
            }
            row += distance;
        }
    }

private:
    const MinimaxMatrix& matrix_;
    uint32 first_token_;
    uint32 own_tokens_;
    uint32 row_bytes_;
    bool inside_[vectors];
    uint64 column_bytes_[vectors];
    // Where the input's vectors of the first token are.
    Address begin_[vectors];
    VectorWeights<Value, Weight> weights_[vectors];
    Vector rows_[tokens][vectors];
};

template <uint32 matrices, uint32 tokens, uint32 vectors, class Value, class Weight>
__device__ __forceinline__ void minimax_in_registers(const MinimaxParameters<matrices>& parameters) {
    __shared__ MinimaxShared<matrices, tokens> storage;
    ptx::launch_dependents();
    MinimaxShared<matrices, tokens>& shared = keep_object(storage);
    // Where the rows take most of the registers, the weights are loaded while the words travel.
    constexpr bool weights_late = tokens * vectors >= 4;

    // Before the wait: everything that no earlier kernel writes.
    const MinimaxPlace place(parameters);
    const uint32 first_token = blockIdx.x * tokens;
    RegisterRows<tokens, vectors, Value, Weight> rows(place, first_token, parameters.tokens);
    if constexpr (!weights_late) {
        rows.load_weights();
    }
    // Last before the wait: its branches also keep the assembler from moving the above behind the wait.
    MinimaxExchange<matrices, tokens> exchange(parameters, shared, place, first_token);
    ptx::wait_for_prior_grids();

    if (exchange.in_service_warp()) {
        exchange.read_control();
    } else {
        rows.load_rows();
        float sums[tokens];
        rows.sums_of_squares(sums);
        exchange.put_sums(place, sums);
        if constexpr (weights_late) {
            rows.load_weights();
        }
    }
    exchange.run();
    if (exchange.in_service_warp()) {
        return;
    }
    float scales[tokens];
    exchange.scales(place, scales);
    rows.normalise(scales);
}

}  // namespace lamport
