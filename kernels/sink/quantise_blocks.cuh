// The quantisers of normalised rows whose scales are bytes. Which one is a choice at run time, as in quantise.cuh.
//
// As an `Output` of ResidualRmsNorm: see StoreRows.
#pragma once

#include "sink/block_quantiser.cuh"
#include "sink/fp8_group_ue8m0.cuh"
#include "sink/mxfp8.cuh"
#include "sink/nvfp4.cuh"

namespace lamport {

template <class Value, uint32 vectors>
class QuantiseBlocks {
public:
    using Parameters = AllReduceRmsNormQuantBlocksParameters;

    struct Shared {};

    __device__ __forceinline__ explicit QuantiseBlocks(const Parameters& parameters) : nvfp4_(parameters) {}

    template <class RowVector>
    __device__ __forceinline__ void take(const Parameters&, bool, const RowVector&) {}

    __device__ __forceinline__ void share(const Parameters&, Shared&) const {}

    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const Parameters& parameters, Shared&, float row_scale) const {
        if (parameters.format == FP8_GROUP_UE8M0) {
            Fp8GroupUe8m0::put(rows, parameters, row_scale);
        } else if (parameters.format == MXFP8) {
            Mxfp8::put(rows, parameters, row_scale);
        } else {
            nvfp4_.put(rows, parameters, row_scale);
        }
        clear_padding(rows, parameters);
    }

    // A warp writes NaN over all of that. The normalised rows have `bytes` bytes.
    static __device__ __forceinline__ void poison(const Parameters& parameters, uint64 bytes) {
        if (parameters.output != 0) {
            fill_with_nan(parameters.output, bytes);
        }
        // Four bits have no NaN: there it is the scales that tell.
        fill_with_nan(parameters.quantised, parameters.format == NVFP4 ? bytes / 4 : bytes / 2);
        for (uint32 token = 0; token < parameters.tokens; ++token) {
            for (uint32 index = threadIdx.x % WARP_THREADS; index < parameters.row_scales; index += WARP_THREADS) {
                store_block_scale_if(true, parameters, token, index, NAN_BYTE);
            }
        }
    }

private:
    // NaN in UE8M0, and in e4m3.
    static constexpr uint32 NAN_BYTE = 0xff;

    Nvfp4 nvfp4_;
};

}  // namespace lamport
