// The sum over ranks of rows, in two shots, with a residual, RMSNorm, and a quantiser.
#include "device/kernel.cuh"
#include "exchange/rows_two_shot.cuh"
#include "sink/quantise.cuh"
#include "sink/residual_rms_norm.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_rms_norm_quant_two_shot, AllReduceRmsNormQuantParameters,
               rows_two_shot<TensorRows, ResidualRmsNorm<LAMPORT_VALUE, LAMPORT_VECTORS, Quantise>, LAMPORT_CAPACITY>)
