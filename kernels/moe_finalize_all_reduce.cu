// The sum over ranks of rows that experts made, in one shot.
#include "device/kernel.cuh"
#include "exchange/rows_one_shot.cuh"
#include "sink/moe_finalize.cuh"
#include "sink/store_sums.cuh"
#include "source/experts.cuh"

LAMPORT_KERNEL(moe_finalize_all_reduce, MoeFinalizeParameters,
               rows_one_shot<ExpertRows, StoreSums<LAMPORT_VALUE, LAMPORT_VECTORS>, LAMPORT_CAPACITY>)
