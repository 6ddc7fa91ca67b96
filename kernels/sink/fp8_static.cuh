// FP8 e4m3 with one scale for the tensor, which is given: values are multiplied by its reciprocal.
#pragma once

#include "sink/quantiser.cuh"

namespace lamport {

class Fp8Static {
public:
    // Reads the scale, before the wait for the kernel in front.
    __device__ __forceinline__ explicit Fp8Static(const AllReduceRmsNormQuantParameters& parameters) {
        if (parameters.format == FP8_STATIC) {
            inverse_scale_ = 1.0f / __uint_as_float(ptx::load_weight_word(parameters.scales));
        }
    }

    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const AllReduceRmsNormQuantParameters& parameters,
                                        float row_scale) const {
        rows.for_each_column([&](Column column) {
            const Vector vector = rows.normalised(column, row_scale);
            store_normalised(rows, parameters, column, vector);
            store_fp8(rows, parameters, column, vector, [&](float value) { return value * inverse_scale_; });
        });
    }

private:
    float inverse_scale_ = 0.0f;
};

}  // namespace lamport
