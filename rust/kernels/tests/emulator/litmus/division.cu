// Division by one number, compared with `/` over all fractions that 16-bit values have.
#include "device/divide.cuh"
#include "device/ptx.cuh"

namespace lamport {

struct DivisionParameters {
    // Gets how many quotients differ, and, 4 bytes on, how many products with the reciprocal do.
    Address result;
    // Of a value, with the leading one.
    uint32 fraction_bits;
    uint32 reserved;
};

__device__ __forceinline__ void division(const DivisionParameters& parameters) {
    ptx::launch_dependents();
    ptx::wait_for_prior_grids();
    if (threadIdx.x != 0) {
        return;
    }
    uint32 quotients = 0, products = 0;
    const uint32 first = 1u << (parameters.fraction_bits - 1);
    for (uint32 largest = first; largest < 2 * first; ++largest) {
        const float scale = static_cast<float>(largest) / 448.0f;
        const Divisor divisor(scale);
        for (uint32 fraction = first; fraction < 2 * first; ++fraction) {
            // The largest itself, down to what is less than half of the least code.
            for (uint32 exponent = 0; exponent < 22; ++exponent) {
                const float value = static_cast<float>(fraction) / static_cast<float>(1u << exponent);
                if (value > static_cast<float>(largest)) {
                    continue;
                }
                const uint32 expected = __float_as_uint(value / scale);
                quotients += __float_as_uint(divisor.divide(value)) != expected;
                quotients += __float_as_uint(divisor.divide(-value)) != (expected | 0x80000000u);
                products += __float_as_uint(value * (1.0f / scale)) != expected;
            }
        }
        quotients += __float_as_uint(divisor.divide(-0.0f)) != 0x80000000u;
    }
    const Divisor by_infinity(__uint_as_float(0x7f800000u));
    quotients += by_infinity.divide(1.0f) != 0.0f;
    quotients += by_infinity.divide(__uint_as_float(0x7f800000u)) == by_infinity.divide(__uint_as_float(0x7f800000u));
    ptx::store_device(parameters.result, quotients);
    ptx::store_device(parameters.result + sizeof(uint32), products);
}

}  // namespace lamport

extern "C" __global__ void division(const __grid_constant__ lamport::DivisionParameters parameters) {
    lamport::division(parameters);
}
