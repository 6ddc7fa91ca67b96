// The sum over ranks of rows, in one shot or two, with a quantiser whose scales are bytes.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "exchange/rows_two_shot.cuh"
#include "sink/quantise_blocks.cuh"
#include "sink/sum_rows.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_quant_blocks, AllReduceRmsNormQuantBlocksParameters,
               LAMPORT_EXCHANGE<TensorRows, SumRows<LAMPORT_VALUE, LAMPORT_VECTORS, QuantiseBlocks>, LAMPORT_CAPACITY>)
