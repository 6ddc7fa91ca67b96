// Division by 448, the largest FP8 e4m3, and by the scale that this makes of a largest magnitude.
//
// A quotient takes two instructions here, where `/` takes ten and a branch: the divisor's reciprocal is a sum of two
// numbers, and the products with both are added with one rounding. The tests compare all quotients that the formats
// need with those of `/`.
#pragma once

#include "device/ptx.cuh"
#include "device/types.cuh"

namespace lamport {

// `dividend` / 448 as `/` gives it, for dividends of 16 bits and quotients from 2^-100 on. Infinity stays that: both
// terms are positive.
__device__ __forceinline__ float divided_by_448(float dividend) {
    return fmaf(dividend, 0x1.249248p-9f, dividend * 0x1.24924ap-33f);
}

// Somewhat less than 448 / magnitude: by 2 to 12 units in the last place. It is there as soon as the scale is.
__device__ __forceinline__ float nearly_inverse_scale(float magnitude) {
    constexpr float SOMEWHAT_ABOVE_448TH = 0x1.249252p-9f;
    return ptx::reciprocal_approximate(magnitude * SOMEWHAT_ABOVE_448TH);
}

// Divides values of 16 bits by the scale that their largest magnitude has, of 2^-43 to 2^120. The FP8 e4m3 codes of the
// quotients are those of what `/` gives: nearly all quotients are that, and the others are not near to where codes
// part.
class Divisor {
public:
    // `inverse` is 1 / divisor less 1 to 12 units in the last place.
    __device__ __forceinline__ Divisor(float divisor, float inverse)
        : inverse_(inverse),
          // By infinity the product with 0 is right already.
          rest_(__float_as_uint(divisor) == 0x7f800000u ? 0.0f : fmaf(-divisor, inverse, 1.0f) * inverse) {}

    __device__ __forceinline__ float divide(float dividend) const {
        return fmaf(dividend, inverse_, dividend * rest_);
    }

private:
    float inverse_;
    // What `inverse_` lacks. Not negative: so a zero keeps its sign.
    float rest_;
};

}  // namespace lamport
