// What happens between the two passes over a MiniMax row: the sums of squares of a block's warps become one per token
// and matrix, all ranks', and then the factor to scale the row by.
//
// A block has T tokens, warps that work on rows, and one service warp, the last. The first warps also exchange, one
// thread per word and peer; all others clear what the operation before left. The service warp also reads the control
// words, arrives and rotates. It has no rows so that the assembler, which knows nothing of how long a load takes,
// cannot put off reading the control words until the rows are there, and so that no row waits for them.
#pragma once

#include "control.cuh"
#include "keep.cuh"
#include "minimax.cuh"
#include "word_exchange.cuh"

namespace lamport {

// What a block's threads tell each other. Rows are numbered like the words: token * matrices + matrix.
template <uint32 matrices, uint32 tokens>
struct MinimaxShared {
    static constexpr uint32 ROWS = matrices * tokens;

    // Own sums of squares, one per warp.
    WarpPartials partials[ROWS];
    // The ranks' sums.
    RankValues sums[ROWS];
    // Of the threads that exchange.
    WordRoute routes[ROWS * (MAX_WORLD_SIZE - 1)];
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

// A thread's part in it. Made before the grid-dependency wait.
template <uint32 matrices, uint32 tokens>
class MinimaxExchange {
public:
    using Shared = MinimaxShared<matrices, tokens>;

    __device__ __forceinline__ MinimaxExchange(const MinimaxParameters<matrices>& parameters, Shared& shared,
                                               const MinimaxPlace& place, uint32 first_token)
        : parameters_(parameters),
          shared_(shared),
          world_size_(parameters.group.world_size),
          row_(threadIdx.x % Shared::ROWS),
          peer_(peer_in_rank_order(parameters.group, threadIdx.x / Shared::ROWS)),
          inverse_count_(keep(place.matrix.inverse_count)),
          exchanges_(peer_ < world_size_ && first_token + row_ / matrices < parameters.tokens) {
        shared.pad(parameters);
        if (exchanges_) {
            const uint32 offset = (first_token * matrices + row_) * sizeof(float);
            shared.routes[threadIdx.x] = word_route(parameters.group, parameters.region_bytes, offset, peer_);
        }
    }

    static __device__ __forceinline__ bool in_service_warp() {
        return threadIdx.x / WARP_THREADS == blockDim.x / WARP_THREADS - 1;
    }

    // The service warp calls it, after the wait. All lanes read alike, which takes no branch.
    __device__ __forceinline__ void read_control() {
        // Not made before the wait: it would take registers from the rows, and the rows take longer.
        const Control control = ControlReader(parameters_.group).read();
        if (is_last_thread()) {
            shared_.control = control;
        }
    }

    // The row warps call it: hands on a warp's sums of squares, one per token, of which each thread brings its part.
    __device__ __forceinline__ void put_sums(const MinimaxPlace& place, float (&sums)[tokens]) {
        const float sum = warp_sums(sums);
        const uint32 lane = threadIdx.x % WARP_THREADS;
        if (place.has_matrix && lane % LANES_PER_SUM<tokens> == 0) {
            const uint32 token = lane / LANES_PER_SUM<tokens>;
            shared_.partials[token * matrices + place.index].values[place.warp] = sum;
        }
    }

    // Every thread of the block calls it, the row warps having put their sums, and the service warp having read the
    // control words.
    __device__ __forceinline__ void run() {
        // Whole warps either exchange or clear, so that those which clear do not wait for those which poll. The host
        // sees to it that the service warp does not exchange.
        const uint32 exchanging =
            (Shared::ROWS * (world_size_ - 1) + WARP_THREADS - 1) / WARP_THREADS * WARP_THREADS;
        __syncthreads();
        if (threadIdx.x >= exchanging) {
            clear_and_arrive(exchanging);
        } else if (exchanges_) {
            exchange();
        }
        // Lanes leave the polling at different times.
        __syncwarp();
        __syncthreads();
    }

    // Whole warps call it, after `run`: one scale per token, for the matrix of `place`.
    __device__ __forceinline__ void scales(const MinimaxPlace& place, float (&scales)[tokens]) const {
        // Lanes share the work: lane i computes the scale of token i modulo `tokens`, and all get all.
        const uint32 row = threadIdx.x % tokens * matrices + place.index;
        const float total = shared_.sums[row].sum(world_size_);
        const float scale = rsqrtf(fmaf(total, inverse_count_, parameters_.epsilon));
#pragma unroll
        for (uint32 t = 0; t < tokens; ++t) {
            scales[t] = tokens == 1 ? scale : __shfl_sync(0xffffffffu, scale, t);
        }
    }

private:
    static __device__ __forceinline__ bool is_last_thread() { return threadIdx.x == blockDim.x - 1; }

    __device__ __forceinline__ void exchange() {
        // These loads from shared memory first: their latency is that of the sum below.
        const uint64 slot_offset = shared_.control.slot_offset;
        const WordRoute route = shared_.routes[threadIdx.x];
        const float sum = shared_.partials[row_].sum(Shared::warps_of_row(parameters_, row_));
        const uint32 own = scrub(__float_as_uint(sum));
        push_word(route, slot_offset, own);
        RankValues& sums = shared_.sums[row_];
        if (threadIdx.x == row_) {
            sums.values[parameters_.group.rank] = __uint_as_float(own);
        }
        const uint32 word = await_word(parameters_.group, route, slot_offset, peer_);
        sums.values[peer_] = __uint_as_float(word);
    }

    __device__ __forceinline__ void clear_and_arrive(uint32 exchanging) {
        ptx::launch_dependents();
        const Group& group = parameters_.group;
        const Control control = shared_.control;
        uint32 arrival = 0;
        if (is_last_thread()) {
            arrival = arrive(group);
        }
        const uint32 threads = blockDim.x - exchanging;
        clear_previous_slot(group, control, blockIdx.x * threads + threadIdx.x - exchanging, gridDim.x * threads);
        // One thread, not its warp: the others, which hold rows, then need not remember the arrival.
        if (is_last_thread() && is_last(arrival)) {
            rotate(group, control, parameters_.region_bytes, 0, 1);
        }
    }

    const MinimaxParameters<matrices>& parameters_;
    Shared& shared_;
    uint32 world_size_;
    // The word this thread exchanges, with which peer, and whether it does.
    uint32 row_;
    uint32 peer_;
    float inverse_count_;
    bool exchanges_;
};

}  // namespace lamport
