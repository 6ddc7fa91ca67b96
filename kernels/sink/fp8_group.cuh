// FP8 e4m3 with a scale for each 128 columns of a row, from their largest magnitude, that values are divided by.
#pragma once

#include "device/divide.cuh"
#include "device/reduce.cuh"
#include "sink/quantiser.cuh"

namespace lamport {

class Fp8Group {
public:
    template <class Rows>
    static __device__ __forceinline__ void put(Rows& rows, const AllReduceRmsNormQuantParameters& parameters,
                                               float row_scale) {
        rows.for_each_column_together([&](Column column) {
            const bool has = rows.has(column);
            const Vector vector = rows.normalised(rows.within(column), row_scale);
            store_normalised(rows, parameters, column, vector);
            const uint32 largest = half_warp_maximum(largest_magnitude_if(has, vector));
            const float magnitude = ptx::larger_or_nan(LEAST, lamport::magnitude<typename Rows::Element>(largest));
            const float scale = divided_by_448(magnitude);
            ptx::store_output_word_if(has && column % VECTORS == 0,
                                      scale_place(parameters, rows.token(), column / VECTORS), __float_as_uint(scale));
            const Divisor divisor(scale, nearly_inverse_scale(magnitude));
            store_fp8(rows, parameters, column, vector, [&](float value) { return divisor.divide(value); });
        });
    }

private:
    // Of a group. The vectors of one are those of half a warp: rows are whole groups, and blocks whole warps.
    static constexpr uint32 VECTORS = WARP_THREADS / 2;
    // Groups of smaller values have the scale of this one.
    static constexpr float LEAST = 1e-10f;
};

}  // namespace lamport
