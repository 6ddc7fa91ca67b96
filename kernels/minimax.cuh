// The MiniMax normalisation: RMSNorm over rows whose columns are spread over the group.
//
// Each rank holds `width` columns of every token's row. The ranks exchange one float32 per token and matrix, the sum of
// squares of their columns, and each normalises its own:
//
//   y = x * rsqrt(sum over ranks and columns of x^2 / (width * world_size) + epsilon) * weight
//
// in float32, rounded once. There are one or two matrices; with two (queries and keys of one packed row, say), a word
// for each travels side by side: word (token * matrices + matrix) of the rank's region.
//
// This file has what the variants share: the parameters, who does what in a block, and the exchange between the two
// passes over the row. A block has T tokens. Its warps belong to one matrix each. The first warps also exchange, one
// thread per word and peer; the others also clear, and the last thread also reads the control words and arrives.
#pragma once

#include "control.cuh"
#include "group.cuh"
#include "numeric.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "word_exchange.cuh"

namespace lamport {

// One matrix of a MiniMax operation. Rows begin at multiples of 16 bytes.
struct MinimaxMatrix {
    Address input;
    Address weight;
    Address output;
    uint32 input_row_bytes;
    uint32 output_row_bytes;
    // Of a row on this rank.
    uint32 vectors;
    // Warps of each block that work on this matrix.
    uint32 warps;
    // 1 / (width * world_size).
    float inverse_count;
    uint32 reserved;
};

template <uint32 matrices>
struct MinimaxParameters {
    Group group;
    MinimaxMatrix matrix[matrices];
    // Bytes of the operation's regions.
    uint32 region_bytes;
    uint32 tokens;
    float epsilon;
    uint32 reserved;
};

ASSERT_LAYOUT_OF_MinimaxMatrix(MinimaxMatrix);
ASSERT_LAYOUT_OF_MinimaxRms(MinimaxParameters<1>);
ASSERT_LAYOUT_OF_MinimaxRmsQk(MinimaxParameters<2>);

// A thread's place: its matrix, and its number among the threads that work on it.
struct MinimaxPlace {
    MinimaxMatrix matrix;
    // 0 or 1, the same for all of a warp.
    uint32 index;
    uint32 warp;
    uint32 thread;
    // False in a warp that has no matrix and is there for the other work only.
    bool has_matrix;

    template <uint32 matrices>
    __device__ __forceinline__ explicit MinimaxPlace(const MinimaxParameters<matrices>& parameters)
        : matrix(parameters.matrix[0]), index(0), warp(threadIdx.x / WARP_THREADS) {
        if constexpr (matrices == 2) {
            // Field by field: choosing between two structs of the parameters would copy both to local memory.
            const MinimaxMatrix& second = parameters.matrix[1];
            const uint32 first_warps = matrix.warps;
            const bool is_second = warp >= first_warps;
            index = is_second ? 1 : 0;
            warp -= is_second ? first_warps : 0;
            matrix.input = is_second ? second.input : matrix.input;
            matrix.weight = is_second ? second.weight : matrix.weight;
            matrix.output = is_second ? second.output : matrix.output;
            matrix.input_row_bytes = is_second ? second.input_row_bytes : matrix.input_row_bytes;
            matrix.output_row_bytes = is_second ? second.output_row_bytes : matrix.output_row_bytes;
            matrix.vectors = is_second ? second.vectors : matrix.vectors;
            matrix.warps = is_second ? second.warps : matrix.warps;
            matrix.inverse_count = is_second ? second.inverse_count : matrix.inverse_count;
        }
        has_matrix = warp < matrix.warps;
        thread = warp * WARP_THREADS + threadIdx.x % WARP_THREADS;
    }

    __device__ __forceinline__ uint32 threads() const { return matrix.warps * WARP_THREADS; }
};

// What a block's threads tell each other. Rows are numbered like the words: token * matrices + matrix.
template <uint32 matrices, uint32 tokens>
struct MinimaxShared {
    static constexpr uint32 ROWS = matrices * tokens;

    // Own sums of squares, one per warp.
    WarpPartials partials[ROWS];
    // The ranks' sums.
    RankValues sums[ROWS];
    Control control;

    // Makes the entries of warps and ranks that do not exist 0, as the sums want it. Each warp takes whole rows.
    __device__ __forceinline__ void pad(const MinimaxParameters<matrices>& parameters) {
        const uint32 lane = threadIdx.x % WARP_THREADS;
        for (uint32 row = threadIdx.x / WARP_THREADS; row < ROWS; row += blockDim.x / WARP_THREADS) {
            if (lane >= warps_of_row(parameters, row)) {
                partials[row].values[lane] = 0.0f;
            }
            if (lane >= parameters.group.world_size && lane < MAX_WORLD_SIZE) {
                sums[row].values[lane] = 0.0f;
            }
        }
    }

    static __device__ __forceinline__ uint32 warps_of_row(const MinimaxParameters<matrices>& parameters, uint32 row) {
        return row % matrices == 0 ? parameters.matrix[0].warps : parameters.matrix[matrices - 1].warps;
    }
};

// Squares of a vector's values, summed. Two chains of additions, since one would be as long as the vector.
template <class Value>
__device__ __forceinline__ float sum_of_squares(const Vector& vector) {
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
        float values[Value::PER_WORD];
        Value::unpack(vector.words[word], values);
        if constexpr (Value::PER_WORD == 2) {
            even = fmaf(values[0], values[0], even);
            odd = fmaf(values[1], values[1], odd);
        } else if (word % 2 == 0) {
            even = fmaf(values[0], values[0], even);
        } else {
            odd = fmaf(values[0], values[0], odd);
        }
    }
    return even + odd;
}

// The weights of the columns of one vector of `Value`s. float32 weights of 16-bit values take two vectors.
template <class Value, class Weight>
struct VectorWeights {
    static constexpr uint32 VECTORS = Value::PER_WORD / Weight::PER_WORD;
    static constexpr uint32 BYTES = VECTORS * VECTOR_BYTES;

    Vector vectors[VECTORS];

    __device__ __forceinline__ void load(Address address) {
#pragma unroll
        for (uint32 i = 0; i < VECTORS; ++i) {
            vectors[i] = ptx::load_weight(address + i * VECTOR_BYTES);
        }
    }

    // Normalises the row's vector that these weights belong to.
    __device__ __forceinline__ Vector apply(const Vector& row, float scale) const {
        Vector result;
#pragma unroll
        for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
            float values[Value::PER_WORD];
            Value::unpack(row.words[word], values);
#pragma unroll
            for (uint32 i = 0; i < Value::PER_WORD; ++i) {
                const uint32 column = word * Value::PER_WORD + i;
                const uint32 weight_word = column / Weight::PER_WORD;
                float weights[Weight::PER_WORD];
                Weight::unpack(vectors[weight_word / VECTOR_WORDS].words[weight_word % VECTOR_WORDS], weights);
                values[i] = values[i] * scale * weights[column % Weight::PER_WORD];
            }
            result.words[word] = Value::pack(values);
        }
        return result;
    }
};

// From the warps' sums of squares to the scales, over all ranks. Made by every thread before the grid-dependency wait,
// which is then as good as over when the sums are there.
template <uint32 matrices, uint32 tokens>
class MinimaxExchange {
public:
    using Shared = MinimaxShared<matrices, tokens>;

    __device__ __forceinline__ MinimaxExchange(const MinimaxParameters<matrices>& parameters, const MinimaxPlace& place,
                                               uint32 first_token)
        : parameters_(parameters),
          world_size_(parameters.group.world_size),
          epsilon_(parameters.epsilon),
          row_(threadIdx.x % Shared::ROWS),
          row_warps_(Shared::warps_of_row(parameters, row_)),
          peer_(min(threadIdx.x / Shared::ROWS, world_size_ - 2)),
          polls_(threadIdx.x < Shared::ROWS * (world_size_ - 1) &&
                 first_token + row_ / matrices < parameters.tokens),
          // Whole warps, so that those which clear do not wait for those which poll. A block has one more at least.
          polling_threads_((Shared::ROWS * (world_size_ - 1) + WARP_THREADS - 1) / WARP_THREADS * WARP_THREADS),
          scale_row_(threadIdx.x % tokens * matrices + place.index),
          inverse_count_(place.matrix.inverse_count),
          route_(parameters.group, parameters.region_bytes, (first_token * matrices + row_) * sizeof(float), peer_) {}

    // Every thread of the block calls it, its warp's sums and the last thread's control words being in `shared`.
    __device__ __forceinline__ void run(Shared& shared, float (&scales)[tokens]) const {
        __syncthreads();
        if (threadIdx.x < polling_threads_) {
            if (polls_) {
                exchange(shared);
            }
        } else {
            clear_and_arrive(shared.control);
        }
        // Lanes leave the polling at different times.
        __syncwarp();
        __syncthreads();

        // Lanes share the work: lane i computes the scale of token i modulo `tokens`, and all get all.
        const float total = shared.sums[scale_row_].sum(world_size_);
        const float scale = rsqrtf(fmaf(total, inverse_count_, epsilon_));
#pragma unroll
        for (uint32 t = 0; t < tokens; ++t) {
            scales[t] = tokens == 1 ? scale : __shfl_sync(0xffffffffu, scale, t);
        }
    }

private:
    __device__ __forceinline__ void exchange(Shared& shared) const {
        const uint32 own = scrub(__float_as_uint(shared.partials[row_].sum(row_warps_)));
        RankValues& sums = shared.sums[row_];
        if (peer_ == 0) {
            sums.values[parameters_.group.rank] = __uint_as_float(own);
        }
        const uint32 word = route_.exchange(parameters_.group, shared.control.slot_offset, own);
        sums.values[route_.source()] = __uint_as_float(word);
    }

    __device__ __forceinline__ void clear_and_arrive(const Control control) const {
        const Group& group = parameters_.group;
        const bool is_last = threadIdx.x == blockDim.x - 1 && arrive(group);
        const uint32 threads = blockDim.x - polling_threads_;
        clear_previous_slot(group, control, blockIdx.x * threads + threadIdx.x - polling_threads_, gridDim.x * threads);
        if (is_last) {
            rotate(group, control, parameters_.region_bytes);
        }
    }

    const MinimaxParameters<matrices>& parameters_;
    uint32 world_size_;
    float epsilon_;
    // The word this thread exchanges, and with whom.
    uint32 row_;
    uint32 row_warps_;
    uint32 peer_;
    bool polls_;
    uint32 polling_threads_;
    // The scale this thread computes.
    uint32 scale_row_;
    float inverse_count_;
    WordRoute route_;
};

// The last warp reads the control words, all lanes alike, and its last thread publishes them. Two calls, so that the
// loads are in flight together with the row's.
__device__ __forceinline__ bool in_last_warp() { return threadIdx.x / WARP_THREADS == blockDim.x / WARP_THREADS - 1; }

}  // namespace lamport
