// MXFP8: FP8 e4m3 with a power of two for each 32 columns of a row, as an exponent.
#pragma once

#include "sink/block_quantiser.cuh"

namespace lamport {

class Mxfp8 {
public:
    template <class Rows>
    static __device__ __forceinline__ void put(Rows& rows, const AllReduceRmsNormQuantBlocksParameters& parameters,
                                               float row_scale) {
        put_with_ue8m0<VECTORS>(rows, parameters, row_scale, 0.0f);
    }

private:
    // Of a block.
    static constexpr uint32 VECTORS = 4;
};

}  // namespace lamport
