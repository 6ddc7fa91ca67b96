// Sums over a warp and over a block. The order of additions is fixed: it depends neither on the run nor on how many
// sums are taken at once.
#pragma once

#include "constants.cuh"
#include "device/types.cuh"

namespace lamport {

constexpr uint32 MAX_WARPS = 32;

// Lanes in a row that end up with the same sum after `warp_sums<count, groups>`.
template <uint32 count, uint32 groups = 1>
constexpr uint32 LANES_PER_SUM = WARP_THREADS / groups / count;

// Sums `count` values (a power of two) over a warp at once: lane i returns the sum of values[i / LANES_PER_SUM<count>].
//
// The lanes may be of 2 or 4 groups, which are summed first, and then added, neighbours first. What is said of lanes
// above then counts within a group.
//
// Each step folds the lanes in halves and gives each half of the lanes one half of the values still in play, so 8 sums
// take 9 shuffles where one butterfly each would take 40. Whatever `count`, the first step adds lanes that are half a
// group apart, the second a quarter and so on. So every sum is the same tree, but for which operand of an addition
// comes first.
template <uint32 count, uint32 groups = 1>
__device__ __forceinline__ float warp_sums(float (&values)[count]) {
    static_assert(count >= 1 && count * groups <= WARP_THREADS && (count & (count - 1)) == 0,
                  "count must be a power of two");
    const uint32 lane = threadIdx.x % WARP_THREADS;
    uint32 mask = WARP_THREADS / groups / 2;
#pragma unroll
    for (uint32 half = count / 2; half > 0; half /= 2) {
        const bool upper = (lane & mask) != 0;
#pragma unroll
        for (uint32 i = 0; i < half; ++i) {
            const float kept = upper ? values[i + half] : values[i];
            const float sent = upper ? values[i] : values[i + half];
            values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, mask);
        }
        mask /= 2;
    }
    float sum = values[0];
#pragma unroll
    for (uint32 rest = LANES_PER_SUM<count, groups> / 2; rest > 0; rest /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, rest);
    }
#pragma unroll
    for (uint32 group = WARP_THREADS / groups; group < WARP_THREADS; group *= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, group);
    }
    return sum;
}

// The largest value of a warp, in all its lanes.
__device__ __forceinline__ uint32 warp_maximum(uint32 value) { return __reduce_max_sync(0xffffffffu, value); }

// The largest value of each half of a warp, in all lanes of that half. Two reductions that do not wait for each other
// are shorter than four shuffles that do.
__device__ __forceinline__ uint32 half_warp_maximum(uint32 value) {
    const bool is_upper = threadIdx.x % WARP_THREADS >= WARP_THREADS / 2;
    const uint32 lower = warp_maximum(is_upper ? 0 : value), upper = warp_maximum(is_upper ? value : 0);
    return is_upper ? upper : lower;
}

// The largest value of each `lanes` lanes in a row (a power of two), in all of them.
template <uint32 lanes>
__device__ __forceinline__ uint32 maximum_of_lanes(uint32 value) {
    if constexpr (lanes == WARP_THREADS / 2) {
        return half_warp_maximum(value);
    } else {
#pragma unroll
        for (uint32 distance = lanes / 2; distance > 0; distance /= 2) {
            value = max(value, __shfl_xor_sync(0xffffffffu, value, distance));
        }
        return value;
    }
}

// What the warps of a block leave in shared memory, for one sum over the block. The stride of 36 words puts rows that
// are read at the same time into different banks, in vectors of four.
//
// The terms are added as a tree over each sixteen, and these in turn. A value is one term, or already the tree over
// `terms` of them, 2 or 4: the sum is the same.
struct alignas(16) WarpPartials {
    float values[MAX_WARPS + 4];

    // One thread sums the first `count` values; entries from `count` on must be 0. Half of them are read at once and
    // however many count, which is quicker than a loop.
    template <uint32 terms = 1>
    __device__ __forceinline__ float sum(uint32 count) const {
        float total = 0.0f;
        uint32 begin = 0;
        // Not unrolled: the second half would take its time and its registers even where it is empty.
#pragma unroll 1
        do {
            total = add_half<terms>(total, begin);
            begin += MAX_WARPS / 2;
        } while (begin < count);
        return total;
    }

    // Two values behind them that are not summed.
    __device__ __forceinline__ float2 padding() const { return *reinterpret_cast<const float2*>(values + MAX_WARPS); }

private:
    template <uint32 terms>
    __device__ __forceinline__ float add_half(float total, uint32 begin) const {
        static_assert(terms == 1 || terms == 2 || terms == 4, "a sixteen must be whole vectors of four");
        const float4* const quads = reinterpret_cast<const float4*>(values + begin);
        const float4 first = quads[0], second = quads[1], third = quads[2], fourth = quads[3];
        const float a = sum_quad(first), b = sum_quad(second), c = sum_quad(third), d = sum_quad(fourth);
        if constexpr (terms == 1) {
            return total + ((a + b) + (c + d));
        } else if constexpr (terms == 2) {
            return (total + (a + b)) + (c + d);
        } else {
            return (((total + a) + b) + c) + d;
        }
    }

    static __device__ __forceinline__ float sum_quad(const float4& quad) {
        return (quad.x + quad.y) + (quad.z + quad.w);
    }
};

// One value per rank, in shared memory. The stride of 20 words is again for the banks.
struct alignas(16) RankValues {
    float values[MAX_WORLD_SIZE + 4];

    // Sums in rank order, as every rank must; entries from `world_size` on must be 0.
    __device__ __forceinline__ float sum(uint32 world_size) const {
        float total = 0.0f;
        uint32 first = 0;
        // Not unrolled: additions of ranks that do not exist would take their time even if predicated off.
#pragma unroll 1
        do {
            const float4 quad = *reinterpret_cast<const float4*>(values + first);
            total = (((total + quad.x) + quad.y) + quad.z) + quad.w;
            first += 4;
        } while (first < world_size);
        return total;
    }
};

}  // namespace lamport
