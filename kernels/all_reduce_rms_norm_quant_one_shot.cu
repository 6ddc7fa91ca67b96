// The sum over ranks of rows, in one shot, with a residual, RMSNorm, and a quantiser.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "sink/quantise.cuh"
#include "sink/residual_rms_norm.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_rms_norm_quant_one_shot, AllReduceRmsNormQuantParameters,
               rows_one_shot<TensorRows, ResidualRmsNorm<LAMPORT_VALUE, LAMPORT_VECTORS, Quantise>, LAMPORT_CAPACITY>)
