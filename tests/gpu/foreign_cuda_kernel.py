"""A kernel that is not the package's: an all-reduce of float32 that knows nothing but the pointer table.

Written as the all-reduce kernels of vLLM and TensorRT-LLM are: every thread reads the table itself, all ranks are
pushed to (this one too), all blocks of the grid count themselves in, and the first of them waits for the others before
it moves the slot index on. It shares no line with the package's kernels, and waits for 20 s at most.
"""

from __future__ import annotations

import torch
from compiler import Kernel

SOURCE = r"""
struct alignas(16) Vector { unsigned words[4]; };

__device__ Vector load(const char* address) {
    Vector v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3]) : "l"(address) : "memory");
    return v;
}

__device__ void store(char* address, const Vector& v) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "l"(address), "r"(v.words[0]), "r"(v.words[1]), "r"(v.words[2]), "r"(v.words[3]) : "memory");
}

__device__ bool is_whole(const Vector& v) {
    for (int i = 0; i < 4; ++i) {
        if (v.words[i] == 0x80000000u) return false;
    }
    return true;
}

__device__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

extern "C" __global__ void foreign_sum(void** table, const Vector* input, float4* output, int vectors, int rank,
                                       int world_size) {
    const unsigned long long deadline = nanoseconds() + 20000000000ull;
    int* const counter = (int*)table[3 * world_size];
    int* const slot_index = counter + 2;
    long long* const extents = (long long*)table[3 * world_size + 1];
    const int slot = *slot_index % 3;
    const long long to_clear = extents[0], comm_size = extents[1];
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1);
    }
    const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    const long long region = 16ll * vectors;
    for (int i = thread; i < vectors; i += threads) {
        Vector own = input[i];
        for (int word = 0; word < 4; ++word) {
            if (own.words[word] == 0x80000000u) own.words[word] = 0;
        }
        for (int peer = 0; peer < world_size; ++peer) {
            store((char*)table[2 * world_size + peer] + slot * comm_size + rank * region + 16ll * i, own);
        }
    }
    char* const block = (char*)table[2 * world_size + rank];
    char* const previous = block + (slot + 2) % 3 * comm_size;
    for (long long at = 16ll * thread; at < to_clear; at += 16ll * threads) {
        store(previous + at, Vector{{0x80000000u, 0x80000000u, 0x80000000u, 0x80000000u}});
    }
    for (int i = thread; i < vectors; i += threads) {
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int peer = 0; peer < world_size; ++peer) {
            Vector v = load(block + slot * comm_size + peer * region + 16ll * i);
            while (!is_whole(v) && nanoseconds() < deadline) {
                v = load(block + slot * comm_size + peer * region + 16ll * i);
            }
            sum.x += is_whole(v) ? __uint_as_float(v.words[0]) : nanf("");
            sum.y += __uint_as_float(v.words[1]);
            sum.z += __uint_as_float(v.words[2]);
            sum.w += __uint_as_float(v.words[3]);
        }
        output[i] = sum;
    }
    if (thread == 0) {
        while (*(volatile int*)counter != gridDim.x && nanoseconds() < deadline) {}
        *slot_index = (slot + 1) % 3;
        extents[0] = world_size * region;
        *counter = 0;
    }
}
"""


class ForeignSum:
    """The kernel, compiled for the current device."""

    def __init__(self, table: torch.Tensor, rank: int, world_size: int) -> None:
        self._kernel = Kernel(SOURCE, "foreign_sum")
        self._table, self._rank, self._world_size = table, rank, world_size

    def __call__(self, values: torch.Tensor, output: torch.Tensor, blocks: int, threads: int = 128) -> None:
        """Sum float32 tensors whose length is a multiple of 4."""
        assert values.numel() % 4 == 0
        arguments = (values, output, values.numel() // 4, self._rank, self._world_size)
        self._kernel(blocks, threads, self._table, *arguments)
