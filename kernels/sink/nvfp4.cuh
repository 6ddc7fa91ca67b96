// NVFP4: FP4 e2m1, two to a byte, with an FP8 e4m3 scale for each 16 columns of a row and one for the tensor, which is
// given.
#pragma once

#include "device/keep.cuh"
#include "sink/block_quantiser.cuh"

namespace lamport {

class Nvfp4 {
public:
    // Reads the scale that is given, before the wait for the kernel in front.
    __device__ __forceinline__ explicit Nvfp4(const AllReduceRmsNormQuantBlocksParameters& parameters) {
        if (parameters.format == NVFP4) {
            given_ = __uint_as_float(ptx::load_weight_word(parameters.given_scale));
            inverse_given_ = keep(1.0f / given_);
        }
    }

    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const AllReduceRmsNormQuantBlocksParameters& parameters,
                                        float row_scale) const {
        for_each_block<VECTORS>(rows, parameters, row_scale, [&](uint32 column, const Vector& vector, float largest) {
            const uint32 scale = ptx::pack_e4m3(given_ * (largest * (1.0f / LARGEST)), 0.0f) & 0xffu;
            store_block_scale_if(rows.has(column) && column % VECTORS == 0, parameters, rows.token(),
                                 column / VECTORS, scale);
            const float value = from_e4m3(scale);
            const float factor = value == 0.0f ? 0.0f : 1.0f / (value * inverse_given_);
            const uint64 place = uint64{rows.token()} * parameters.row_vectors + column;
            ptx::store_output_word_if(rows.has(column), parameters.quantised + place * (VECTOR_BYTES / 4),
                                      pack<typename Rows::Element>(vector, factor));
        });
    }

private:
    // Of a block.
    static constexpr uint32 VECTORS = 2;
    // Of FP4 e2m1.
    static constexpr float LARGEST = 6.0f;

    // A vector's values times `factor`, the first in the lowest bits.
    template <class Value>
    static __device__ __forceinline__ uint32 pack(const Vector& vector, float factor) {
        float values[PER_VECTOR<Value>];
        unpack<Value>(vector, values);
        uint32 word = 0;
#pragma unroll
        for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
            word |= to_e2m1(values[i] * factor) << 4 * i;
        }
        return word;
    }

    // The nearest, of two the even one; beyond the largest, that, as any NaN.
    //
    // Codes are numbers of steps: of 1/2 up to 2, then of 1 up to 4, then of 2. Each line below counts them as if one
    // step held everywhere, and rounds in an addition; where another step holds, it counts too many.
    static __device__ __forceinline__ uint32 to_e2m1(float value) {
        // Numbers of this size are whole.
        constexpr float WHOLE = 12582912.0f;
        const float magnitude = fabsf(value);
        const float halves = fmaf(magnitude, 2.0f, WHOLE);
        const float ones = magnitude + (WHOLE + 2.0f);
        const float twos = fmaf(magnitude, 0.5f, WHOLE + 4.0f);
        const float code = fminf(fminf(halves, ones), fminf(twos, WHOLE + 7.0f));
        const uint32 sign = value != value ? 0u : __float_as_uint(value) >> 28 & 8u;
        return sign | (__float_as_uint(code) & 7u);
    }

    // What a code that is not negative stands for.
    static __device__ __forceinline__ float from_e4m3(uint32 code) {
        // The exponent's bias is 127 and not 7. Below 2^-6 the product is exact too.
        const float value = __uint_as_float(code << 20) * 0x1p120f;
        return code == 0x7fu ? __uint_as_float(0x7fffffffu) : value;
    }

    float given_ = 1.0f;
    float inverse_given_ = 1.0f;
};

}  // namespace lamport
