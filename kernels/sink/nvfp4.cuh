// NVFP4: FP4 e2m1, two to a byte, with an FP8 e4m3 scale for each 16 columns of a row and one for the tensor, which is
// given.
#pragma once

#include "sink/block_quantiser.cuh"

namespace lamport {

class Nvfp4 {
public:
    // Reads the scale that is given, before the wait for the kernel in front.
    __device__ __forceinline__ explicit Nvfp4(const AllReduceRmsNormQuantBlocksParameters& parameters) {
        if (parameters.format == NVFP4) {
            given_ = __uint_as_float(ptx::load_weight_word(parameters.given_scale));
        }
    }

    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const AllReduceRmsNormQuantBlocksParameters& parameters,
                                        float row_scale) const {
        const float inverse_given = 1.0f / given_;
        for_each_block<VECTORS>(rows, parameters, row_scale, [&](uint32 column, const Vector& vector, float largest) {
            const uint32 scale = ptx::pack_e4m3(given_ * (largest * (1.0f / LARGEST)), 0.0f) & 0xffu;
            store_block_scale_if(rows.has(column) && column % VECTORS == 0, parameters, rows.token(),
                                 column / VECTORS, scale);
            const float value = from_e4m3(scale);
            const float factor = value == 0.0f ? 0.0f : 1.0f / (value * inverse_given);
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
    static __device__ __forceinline__ uint32 to_e2m1(float value) {
        const uint32 word = __float_as_uint(value), magnitude = word & 0x7fffffffu;
        const uint32 sign = word >> 28 & 8u;
        if (magnitude >= 0x40c00000u) {
            return magnitude > 0x7f800000u ? 7u : sign | 7u;
        }
        if (magnitude < 0x3f800000u) {
            // Below 1: in units of 1/2, which the addition rounds to.
            return sign | (__float_as_uint(__uint_as_float(magnitude) + 4194304.0f) - __float_as_uint(4194304.0f));
        }
        // The exponent's bias is 1 and not 127; one bit of the fraction is left.
        return sign | (magnitude + 0x1fffffu + (magnitude >> 22 & 1u) - (126u << 23)) >> 22;
    }

    // What a code that is not negative stands for.
    static __device__ __forceinline__ float from_e4m3(uint32 code) {
        if (code == 0x7fu) {
            return __uint_as_float(0x7fffffffu);
        }
        // The exponent's bias is 127 and not 7. Below 2^-6: in units of 2^-9.
        return code < 8 ? code * (1.0f / 512.0f) : __uint_as_float((code << 20) + (120u << 23));
    }

    float given_ = 1.0f;
};

}  // namespace lamport
