"""A kernel that is not the package's, of the shape of vLLM's fused Q+K norm: see docs/foreign_kernels.md.

It knows nothing but the pointer table. A block takes four tokens at a time, sums the squares of their Q and of their K,
and exchanges the eight sums; the extent to clear counts elements of the rows and not bytes, as theirs does. The code is
our own, and shares nothing with the package's kernels. All its waits end: what did not come is counted.
"""

from __future__ import annotations

import torch
from compiler import Kernel

WIDTHS = (3072, 512)
"""Columns of Q and K on each rank, multiples of a warp's 256."""
EPS = 1e-6
THREADS = sum(WIDTHS) // 8
ROWS = 4
PATIENCE_MICROSECONDS = 5_000_000

SOURCE = r"""
constexpr int ROWS = 4, ELEMENTS = 8, Q_WARPS = 12, K_WARPS = 2, THREADS = 32 * (Q_WARPS + K_WARPS);
constexpr unsigned SENTINEL = 0x80000000u, ALL_LANES = 0xffffffffu;

struct alignas(16) Vector { unsigned words[4]; };
struct Faults { unsigned overtaken, missing; };

__device__ Vector load(const Vector* address) {
    Vector v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3]) : "l"(address) : "memory");
    return v;
}

__device__ bool is_whole(const Vector& v) {
    return v.words[0] != SENTINEL && v.words[1] != SENTINEL && v.words[2] != SENTINEL && v.words[3] != SENTINEL;
}

__device__ void wait_for_the_grid_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ void let_dependents_in() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// A sum over all lanes of a warp, the same bits in each.
__device__ float sum_of_lanes(float value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ float element(const Vector& v, int index) {
    return __uint_as_float(index % 2 ? v.words[index / 2] & 0xffff0000u : v.words[index / 2] << 16);
}

// To the nearest bfloat16, ties to even.
__device__ unsigned rounded(float value) {
    const unsigned bits = __float_as_uint(value);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

struct Control {
    int* counter;
    long long* extents;
    int slot;
    long long to_clear, comm_size;
};

// Reads the control words and counts this block in. Whether it comes before the wait is what the kernels differ in.
__device__ Control enter(void** table, int world_size) {
    Control control;
    control.counter = (int*)table[3 * world_size];
    control.extents = (long long*)table[3 * world_size + 1];
    control.slot = control.counter[2];
    control.to_clear = control.extents[0];
    control.comm_size = control.extents[1];
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(control.counter, 1);
    return control;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
foreign_norm(void** table, const Vector* input, const Vector* weight, Vector* output, int tokens, int rank,
             int world_size, int patience_microseconds, Faults* faults) {
    __shared__ float partial[ROWS][32];
    __shared__ float scales[2][ROWS];
    const unsigned long long patience = 1000ull * patience_microseconds;
#if CONTROL_AFTER_WAIT
    wait_for_the_grid_before();
    const Control control = enter(table, world_size);
#else
    const Control control = enter(table, world_size);
    wait_for_the_grid_before();
#endif
    char* const own = (char*)table[2 * world_size + rank];
    const long long slot_offset = control.slot % 3 * control.comm_size;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = (tokens + ROWS - 1) / ROWS;
    const int matrix = warp >= Q_WARPS, first_warp = matrix ? Q_WARPS : 0, warps = matrix ? K_WARPS : Q_WARPS;
    const Vector factors = weight[threadIdx.x];
    for (int group = blockIdx.x; group < groups; group += gridDim.x) {
        Vector rows[ROWS];
        for (int row = 0; row < ROWS; ++row) {
            const int token = ROWS * group + row;
            rows[row] = token < tokens ? input[(long long)token * THREADS + threadIdx.x] : Vector{};
            float squares = 0.0f;
            for (int i = 0; i < ELEMENTS; ++i) squares += element(rows[row], i) * element(rows[row], i);
            squares = sum_of_lanes(squares);
            if (lane == 0) partial[row][warp] = squares;
        }
        __syncthreads();
        if (warp == first_warp) {
            Vector sums, theirs = {};
            for (int row = 0; row < ROWS; ++row) {
                sums.words[row] = __float_as_uint(sum_of_lanes(lane < warps ? partial[row][first_warp + lane] : 0.0f));
            }
            if (lane < world_size) {
                const int place = 2 * group + matrix, region = 2 * groups;
                char* const peer = (char*)table[2 * world_size + lane];
                ((Vector*)(peer + slot_offset))[rank * region + place] = sums;
                const Vector* const from = (const Vector*)(own + slot_offset) + lane * region + place;
                const unsigned long long begin = nanoseconds();
                theirs = load(from);
                while (!is_whole(theirs)) {
                    if (nanoseconds() - begin > patience) {
                        atomicAdd(&faults->missing, 1);
                        break;
                    }
                    theirs = load(from);
                }
            }
            __syncwarp();
            for (int row = 0; row < ROWS; ++row) {
                const float total = sum_of_lanes(__uint_as_float(theirs.words[row]));
                const float columns = 32.0f * ELEMENTS * warps * world_size;
                if (lane == 0) scales[matrix][row] = rsqrtf(total / columns + 1e-6f);
            }
        }
        __syncthreads();
        for (int row = 0; row < ROWS && ROWS * group + row < tokens; ++row) {
            Vector result;
            for (int i = 0; i < ELEMENTS; i += 2) {
                const float scale = scales[matrix][row];
                const unsigned low = rounded(element(rows[row], i) * scale * element(factors, i));
                result.words[i / 2] = low | rounded(element(rows[row], i + 1) * scale * element(factors, i + 1)) << 16;
            }
            output[(long long)(ROWS * group + row) * THREADS + threadIdx.x] = result;
        }
    }
    let_dependents_in();
    Vector* const previous = (Vector*)(own + (control.slot + 2) % 3 * control.comm_size);
    const long long end = control.to_clear / ELEMENTS;
    for (long long at = blockIdx.x * THREADS + threadIdx.x; at < end; at += gridDim.x * THREADS) {
        previous[at] = Vector{{SENTINEL, SENTINEL, SENTINEL, SENTINEL}};
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        const unsigned long long begin = nanoseconds();
        while (*(volatile int*)control.counter != gridDim.x) {
            if (nanoseconds() - begin > patience) {
                atomicAdd(&faults->overtaken, 1);
                break;
            }
        }
        control.counter[2] = (control.slot + 1) % 3;
        control.extents[0] = 2ll * groups * ELEMENTS * world_size;
        *control.counter = 0;
    }
}
"""

BETWEEN = r"""
extern "C" __global__ void between(float* words) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    words[blockIdx.x * blockDim.x + threadIdx.x] += 1.0f;
}
"""


class ForeignNorm:
    """The kernel, compiled for the current device. Rows and weights are bfloat16, Q's columns before K's.

    With `control_after_wait=False` it is as the serving stack's: right behind any other kernel, and not behind another
    of its kind that lets it in early. With True it is right behind itself too.
    """

    def __init__(
        self,
        table: torch.Tensor,
        rank: int,
        world_size: int,
        *,
        control_after_wait: bool,
        patience_microseconds: int = PATIENCE_MICROSECONDS,
    ) -> None:
        self._kernel = Kernel(f"#define CONTROL_AFTER_WAIT {int(control_after_wait)}\n{SOURCE}", "foreign_norm")
        self._table, self._rank, self._world_size = table, rank, world_size
        self._patience = patience_microseconds
        properties = torch.cuda.get_device_properties(table.device)
        self._most_blocks = 2 * properties.multi_processor_count
        self._can_depend = properties.major >= 9
        self.faults = torch.zeros(2, dtype=torch.int32, device=table.device)
        """How often a block was counted too early, or too late, to be seen; and how often data did not come."""

    def __call__(self, rows: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, *, dependent: bool) -> None:
        """Normalise rows; if `dependent`, launched with the attribute that lets it start early."""
        assert rows.is_contiguous()
        assert rows.shape[1] == sum(WIDTHS)
        tokens = rows.shape[0]
        blocks = min(-(-tokens // ROWS), self._most_blocks)
        settings = (tokens, self._rank, self._world_size, self._patience, self.faults)
        self._kernel(
            blocks, THREADS, self._table, rows, weight, output, *settings, dependent=dependent and self._can_depend
        )


class Between:
    """A small kernel that waits for the one before it, then touches memory: as a model has between two norms."""

    BLOCKS, THREADS = 132, 128

    def __init__(self, device: torch.device) -> None:
        self._kernel = Kernel(BETWEEN, "between")
        self._words = torch.zeros(self.BLOCKS * self.THREADS, device=device)
        self._can_depend = torch.cuda.get_device_properties(device).major >= 9

    def __call__(self, blocks: int = BLOCKS) -> None:
        """Launched so that it may start early."""
        self._kernel(blocks, self.THREADS, self._words, dependent=self._can_depend)
