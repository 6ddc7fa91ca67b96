// The sum over ranks of a tensor, in two shots, in phases.
#include "device/kernel.cuh"
#include "exchange/two_shot_phased.cuh"
#include "sink/store.cuh"
#include "source/tensor.cuh"

LAMPORT_KERNEL(all_reduce_two_shot_phased, AllReduceParameters,
               two_shot_phased<TensorSource, Store<LAMPORT_VALUE>, LAMPORT_CAPACITY>)
