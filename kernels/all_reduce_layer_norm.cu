// The sum over ranks of rows, in one shot, with a residual, and layer norm.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "sink/residual_layer_norm.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_layer_norm, AllReduceLayerNormParameters,
               rows_one_shot<TensorRows, ResidualLayerNorm<LAMPORT_VALUE, LAMPORT_VECTORS>, LAMPORT_CAPACITY>)
