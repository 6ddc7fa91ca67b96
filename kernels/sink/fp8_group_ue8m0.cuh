// FP8 e4m3 with a power of two for each 128 columns of a row: exponents, four to a word.
#pragma once

#include "sink/block_quantiser.cuh"

namespace lamport {

class Fp8GroupUe8m0 {
public:
    template <class Rows>
    static __device__ __forceinline__ void put(Rows& rows, const AllReduceRmsNormQuantBlocksParameters& parameters,
                                               float row_scale) {
        put_with_ue8m0<VECTORS>(rows, parameters, row_scale, LEAST);
        // The rest of the row's last word. A row has less of that than threads.
        const uint32 scales = parameters.row_vectors / VECTORS;
        store_block_scale_if(rows.has(0) && scales + threadIdx.x < parameters.row_scales, parameters, rows.token(),
                             scales + threadIdx.x, 0);
    }

private:
    // Of a group.
    static constexpr uint32 VECTORS = 16;
    // No scale is less, before it is rounded.
    static constexpr float LEAST = 1e-10f;
};

}  // namespace lamport
