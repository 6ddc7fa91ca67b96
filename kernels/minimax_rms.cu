// MiniMax normalisation of one matrix. VALUE and WEIGHT are element types of numeric.cuh, set when compiling.
#include "minimax_registers.cuh"
#include "minimax_wide.cuh"

#define MINIMAX_KERNEL(tokens, vectors, threads, blocks)                                                              \
    extern "C" __global__ void __launch_bounds__(threads, blocks) minimax_rms_t##tokens##_v##vectors(                 \
        const __grid_constant__ lamport::MinimaxParameters<1> parameters) {                                           \
        lamport::minimax_in_registers<1, tokens, vectors, lamport::VALUE, lamport::WEIGHT>(parameters);               \
    }
MINIMAX_VARIANTS(MINIMAX_KERNEL)

extern "C" __global__ void __launch_bounds__(lamport::MINIMAX_WIDE_THREADS)
    minimax_rms_wide(const __grid_constant__ lamport::MinimaxParameters<1> parameters) {
    lamport::minimax_wide<1, lamport::VALUE, lamport::WEIGHT>(parameters);
}
