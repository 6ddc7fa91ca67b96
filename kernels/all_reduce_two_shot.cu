// The sum over ranks of a tensor, in two shots.
#include "device/kernel.cuh"
#include "exchange/two_shot.cuh"
#include "sink/store.cuh"
#include "source/tensor.cuh"

LAMPORT_KERNEL(all_reduce_two_shot, AllReduceParameters, two_shot<TensorSource, Store<LAMPORT_VALUE>, LAMPORT_CAPACITY>)
