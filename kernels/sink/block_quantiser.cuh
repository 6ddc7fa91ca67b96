// What quantisers have in common whose scales are bytes, one for each block of columns of a row.
#pragma once

#include "device/reduce.cuh"
#include "device/ue8m0.cuh"
#include "sink/quantiser.cuh"

namespace lamport {

// Scales lie in fours of a row. `scale_row_stride` and `scale_stride` are in bytes: to the next row, of 32, and to the
// next four. `scales` is that of the whole tensor, and `row_scales` counts those too that are always 0.
struct AllReduceRmsNormQuantBlocksParameters : AllReduceRmsNormQuantParameters {
    // The tensor's scale that is given, or 0.
    Address given_scale;
    // Of the whole tensor: the number of the first of these rows.
    uint32 first_row;
    // Bytes from a scale to that of the 32nd row from it, within 128 rows, and to that of the 128th.
    uint32 scale_rows_32_stride;
    uint32 scale_rows_128_stride;
    // Behind these rows: rows that only the tensor of scales has.
    uint32 padding_rows;
};

ASSERT_LAYOUT_OF_AllReduceRmsNormQuantBlocks(AllReduceRmsNormQuantBlocksParameters);

// Where scale `index` of a row is.
__device__ __forceinline__ Address block_scale_place(const AllReduceRmsNormQuantBlocksParameters& parameters,
                                                     uint32 token, uint32 index) {
    const uint32 row = parameters.first_row + token;
    const uint64 of_row = uint64{row % 32} * parameters.scale_row_stride +
                          uint64{row / 32 % 4} * parameters.scale_rows_32_stride +
                          uint64{row / 128} * parameters.scale_rows_128_stride;
    const uint64 in_row = uint64{index / 4} * parameters.scale_stride + index % 4;
    return parameters.scales + of_row + in_row;
}

// Stores scale `index` of a row.
__device__ __forceinline__ void store_block_scale_if(bool condition,
                                                     const AllReduceRmsNormQuantBlocksParameters& parameters,
                                                     uint32 token, uint32 index, uint32 byte) {
    ptx::store_output_byte_if(condition, block_scale_place(parameters, token, index), byte);
}

// Stores 0 as the scales of rows that only their tensor has: some of the last 128, where there are any. The threads of
// all blocks with rows share that, four scales at a time in the order of the memory, so that a warp's stores are whole
// lines: a block alone may have 127 rows to clear.
template <class Rows>
__device__ __forceinline__ void clear_padding(const Rows& rows,
                                              const AllReduceRmsNormQuantBlocksParameters& parameters) {
    constexpr uint32 ROWS = 128;
    const uint32 words = rows.has(0) && parameters.padding_rows != 0 ? parameters.row_scales / 4 * ROWS : 0;
    const uint32 first = parameters.tokens + parameters.padding_rows - ROWS;
    for (uint32 word = rows.token() * blockDim.x + threadIdx.x; word < words; word += parameters.tokens * blockDim.x) {
        const uint32 row = word % 4 * 32 + word / 4 % 32;
        ptx::store_output_word_if(row >= ROWS - parameters.padding_rows,
                                  block_scale_place(parameters, first + row, word / ROWS * 4), 0);
    }
}

// Normalises the row, and calls `quantise` with the number of each of the thread's vectors, the vector, and the largest
// magnitude of its block, which is of `vectors` vectors. Rows are whole blocks, and the vectors of one are those of
// neighbouring lanes. All threads of the block call it.
template <uint32 vectors, class Rows, class Quantise>
__device__ __forceinline__ void for_each_block(Rows& rows, const AllReduceRmsNormQuantBlocksParameters& parameters,
                                               float row_scale, Quantise quantise) {
    rows.for_each_column_together([&](Column column) {
        const bool has = rows.has(column);
        const Vector vector = rows.normalised(rows.within(column), row_scale);
        store_normalised(rows, parameters, column, vector);
        const uint32 largest = maximum_of_lanes<vectors>(largest_magnitude_if(has, vector));
        quantise(column, vector, magnitude<typename Rows::Element>(largest));
    });
}

// Quantises the row to FP8 e4m3 with powers of two as scales: for each block the least one that leaves its largest
// magnitude, divided, not beyond 448. No scale is below that of `least`. A block with a NaN or an infinity
// is NaN, and so is its scale.
template <uint32 vectors, class Rows>
__device__ __forceinline__ void put_with_ue8m0(Rows& rows, const AllReduceRmsNormQuantBlocksParameters& parameters,
                                               float row_scale, float least) {
    for_each_block<vectors>(rows, parameters, row_scale, [&](uint32 column, const Vector& vector, float largest) {
        const uint32 scale = max(ue8m0_for_e4m3(largest), to_ue8m0(least));
        store_block_scale_if(rows.has(column) && column % vectors == 0, parameters, rows.token(), column / vectors,
                             scale);
        const float inverse = reciprocal_of_ue8m0(scale);
        store_fp8(rows, parameters, column, vector, [&](float value) { return value * inverse; });
    });
}

}  // namespace lamport
