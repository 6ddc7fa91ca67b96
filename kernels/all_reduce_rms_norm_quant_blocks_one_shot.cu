// The sum over ranks of rows, in one shot, with a residual, RMSNorm, and a quantiser whose scales are bytes.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "sink/quantise_blocks.cuh"
#include "sink/residual_rms_norm.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_rms_norm_quant_blocks_one_shot, AllReduceRmsNormQuantBlocksParameters,
               rows_one_shot<TensorRows, ResidualRmsNorm<LAMPORT_VALUE, LAMPORT_VECTORS, QuantiseBlocks>,
                             LAMPORT_CAPACITY>)
