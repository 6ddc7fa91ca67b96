// The sum over ranks of rows, in one shot, with a residual, and RMSNorm.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "sink/residual_rms_norm.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_rms_norm_one_shot, AllReduceRmsNormParameters,
               rows_one_shot<TensorRows, ResidualRmsNorm<LAMPORT_VALUE, LAMPORT_VECTORS>, LAMPORT_CAPACITY>)
