// MiniMax normalisation of two matrices, queries and keys, that usually lie in one packed row. The macros choose one of the variants.
#if LAMPORT_VECTORS == 0
#include "minimax_wide.cuh"
#else
#include "minimax_registers.cuh"
#endif

extern "C" __global__ void __launch_bounds__(LAMPORT_MAX_THREADS, LAMPORT_MIN_BLOCKS)
    minimax_rms_qk(const __grid_constant__ lamport::MinimaxParameters<2> parameters) {
    using Value = lamport::LAMPORT_VALUE;
    using Weight = lamport::LAMPORT_WEIGHT;
#if LAMPORT_VECTORS == 0
    lamport::minimax_wide<2, Value, Weight>(parameters);
#else
    lamport::minimax_in_registers<2, LAMPORT_TOKENS, LAMPORT_VECTORS, Value, Weight>(parameters);
#endif
}
