// Division by one number, many times.
#pragma once

#include "device/types.cuh"

namespace lamport {

// Divides as `/` does, bit for bit, in three instructions where that takes ten and a branch: a multiplication by the
// reciprocal, and a correction by what is left over. That is so for dividends of 16 bits, divisors of 2^-43 to 2^120,
// and quotients of 2^-12 to 2^10: as they are between values and the scale that their largest has. Smaller quotients
// stay small.
class Divisor {
public:
    __device__ __forceinline__ explicit Divisor(float divisor)
        : inverse_(1.0f / divisor),
          // By infinity the product is right already, and 0 leaves it alone.
          divisor_(__float_as_uint(divisor) == 0x7f800000u ? 0.0f : divisor) {}

    __device__ __forceinline__ float divide(float dividend) const {
        const float quotient = dividend * inverse_;
        // Negated: so a zero keeps its sign.
        const float excess = fmaf(quotient, divisor_, -dividend);
        return fmaf(excess, -inverse_, quotient);
    }

private:
    float inverse_;
    float divisor_;
};

}  // namespace lamport
