// The sum over ranks: float32, in rank order, the same bits on every rank and with either algorithm.
#pragma once

#include "group.cuh"
#include "vector_exchange.cuh"

namespace lamport {

struct AllReduceParameters {
    Group group;
    Address input;
    // May be the input.
    Address output;
    // Of the tensor: a multiple of 2.
    uint64 bytes;
    // Bytes of the operation's regions.
    uint32 region_bytes;
    // Vectors that each rank reduces: all of them (one-shot), or those of a shard (two-shot).
    uint32 vectors;
};

ASSERT_LAYOUT_OF_AllReduce(AllReduceParameters);

template <class Value, uint32 capacity>
__device__ __forceinline__ Vector rounded_sum(const RankVectors<capacity>& vectors, uint32 world_size) {
    float sum[PER_VECTOR<Value>];
    sum_in_rank_order<Value>(vectors, world_size, sum);
    return round_and_scrub<Value>(sum);
}

}  // namespace lamport
