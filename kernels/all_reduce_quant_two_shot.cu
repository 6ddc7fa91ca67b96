// The sum over ranks of rows, in two shots, with a quantiser.
#include "device/kernel.cuh"
#include "exchange/rows_two_shot.cuh"
#include "sink/quantise.cuh"
#include "sink/sum_rows.cuh"
#include "source/rows.cuh"

LAMPORT_KERNEL(all_reduce_quant_two_shot, AllReduceRmsNormQuantParameters,
               rows_two_shot<TensorRows, SumRows<LAMPORT_VALUE, LAMPORT_HELD, Quantise>, LAMPORT_CAPACITY>)
