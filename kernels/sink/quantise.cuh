// The quantisers of normalised rows. Which one is a choice at run time: a module for each would be four times as many.
//
// As an `Output` of ResidualRmsNorm: see StoreRows.
#pragma once

#include "sink/fp8_group.cuh"
#include "sink/fp8_static.cuh"
#include "sink/fp8_token.cuh"
#include "sink/quantiser.cuh"

namespace lamport {

template <class Value, uint32 vectors>
class Quantise {
public:
    using Parameters = AllReduceRmsNormQuantParameters;
    using Shared = typename Fp8Token<Value, vectors>::Shared;

    __device__ __forceinline__ explicit Quantise(const Parameters& parameters) : fp8_static_(parameters) {}

    template <class RowVector>
    __device__ __forceinline__ void take(const Parameters& parameters, bool has, const RowVector& vector) {
        if (parameters.format == FP8_TOKEN) {
            fp8_token_.take(has, vector);
        }
    }

    __device__ __forceinline__ void share(const Parameters& parameters, Shared& shared) const {
        if (parameters.format == FP8_TOKEN) {
            fp8_token_.share(shared);
        }
    }

    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const Parameters& parameters, Shared& shared,
                                        float row_scale) const {
        if (parameters.format == FP8_STATIC) {
            fp8_static_.put(rows, parameters, row_scale);
        } else if (parameters.format == FP8_TOKEN) {
            fp8_token_.put(rows, parameters, shared, row_scale);
        } else {
            Fp8Group::put(rows, parameters, row_scale);
        }
    }

    // A warp writes NaN over all of that. The normalised rows have `bytes` bytes.
    static __device__ __forceinline__ void poison(const Parameters& parameters, uint64 bytes) {
        if (parameters.output != 0) {
            fill_with_nan(parameters.output, bytes);
        }
        fill_with_nan(parameters.quantised, bytes / 2);
        if (parameters.format == FP8_STATIC) {
            return;
        }
        for (uint32 token = 0; token < parameters.tokens; ++token) {
            for (uint32 index = threadIdx.x % WARP_THREADS; index < parameters.row_scales; index += WARP_THREADS) {
                ptx::store_output_word_if(true, scale_place(parameters, token, index), NAN_WORD);
            }
        }
    }

private:
    Fp8Static fp8_static_;
    Fp8Token<Value, vectors> fp8_token_;
};

}  // namespace lamport
