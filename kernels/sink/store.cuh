// The sink of a sum: it is stored. Float32, in rank order, the same bits on every rank and with either algorithm.
#pragma once

#include "protocol/control.cuh"
#include "protocol/group.cuh"
#include "protocol/vector_routes.cuh"
#include "source/tensor.cuh"

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

template <class Value>
class Store {
public:
    using Parameters = AllReduceParameters;

    __device__ __forceinline__ explicit Store(const Parameters& parameters)
        : output_(parameters.output, parameters.bytes) {}

    // The part of the block that speaks.
    static __device__ __forceinline__ void speak(const Parameters& parameters) {
        lamport::speak(parameters.group, parameters.region_bytes, parameters.bytes,
                       [&] { fill_with_nan(parameters.output, parameters.bytes); });
    }

    // What is stored, and travels in two shots.
    template <uint32 capacity>
    static __device__ __forceinline__ Vector reduce(const RankVectors<capacity>& vectors, const Group& group) {
        float sum[PER_VECTOR<Value>];
        sum_in_rank_order<Value>(vectors, group, sum);
        return round_sum<Value>(sum);
    }

    __device__ __forceinline__ Address address(uint32 index) const { return output_.address(index); }

    // Stores vector `index`, which is at `address`. Vectors beyond the end are not written.
    __device__ __forceinline__ void store(uint32 index, Address address, const Vector& vector) const {
        output_.store(index, address, vector);
    }

private:
    TensorVectors output_;
};

}  // namespace lamport
