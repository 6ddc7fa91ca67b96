// The sum over ranks of a tensor, in one shot.
#include "device/kernel.cuh"
#include "exchange/one_shot.cuh"
#include "sink/store.cuh"
#include "source/tensor.cuh"

LAMPORT_KERNEL(all_reduce_one_shot, AllReduceParameters, one_shot<TensorSource, Store<LAMPORT_VALUE>, LAMPORT_CAPACITY>)
