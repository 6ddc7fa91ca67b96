// The sum over ranks of rows, in one shot or two, with a quantiser.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "exchange/rows_two_shot.cuh"
#include "sink/quantise.cuh"
#include "sink/sum_rows.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_quant, AllReduceRmsNormQuantParameters,
               LAMPORT_EXCHANGE<TensorRows, SumRows<LAMPORT_VALUE, LAMPORT_VECTORS, Quantise>, LAMPORT_CAPACITY>)
