// The sum over ranks of rows that experts made, in one shot, with a residual, and RMSNorm.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "sink/moe_finalize.cuh"
#include "sink/residual_rms_norm.cuh"
#include "source/experts.cuh"

LAMPORT_KERNEL(moe_finalize_all_reduce_rms_norm, MoeFinalizeParameters,
               rows_one_shot<ExpertRows, ResidualRmsNorm<LAMPORT_VALUE, LAMPORT_VECTORS>, LAMPORT_CAPACITY>)
