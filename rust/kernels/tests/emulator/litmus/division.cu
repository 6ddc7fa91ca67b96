// Division by one number, and by 448, compared with `/` over all fractions that 16-bit values have.
#include "device/divide.cuh"
#include "device/numeric.cuh"
#include "device/ptx.cuh"
#include "device/ue8m0.cuh"

namespace lamport {

struct DivisionParameters {
    // Gets how many codes of quotients differ, then how many of products with the reciprocal do, then how many scales.
    Address result;
    // Of a value, with the leading one.
    uint32 fraction_bits;
    uint32 reserved;
};

// The codes of a value and of its negative.
__device__ __forceinline__ uint32 both_codes(float value) { return ptx::pack_e4m3(value, -value); }

// A reciprocal lacks from 1 to so many units in the last place.
constexpr uint32 MOST_LACKING = 12;

// How many codes of quotients by the scale of `largest` differ, however much its reciprocal lacks.
__device__ __forceinline__ uint32 count_quotients(const DivisionParameters& parameters, uint32 largest,
                                                  uint32& products) {
    const uint32 first = 1u << (parameters.fraction_bits - 1);
    const float scale = static_cast<float>(largest) / 448.0f, inverse = 1.0f / scale;
    const auto divisor_lacking = [&](uint32 units) {
        return Divisor(scale, __uint_as_float(__float_as_uint(inverse) - units));
    };
    uint32 quotients = 0;
    for (uint32 units = 1; units <= MOST_LACKING; ++units) {
        quotients += __float_as_uint(divisor_lacking(units).divide(-0.0f)) != 0x80000000u;
    }
    for (uint32 fraction = first; fraction < 2 * first; ++fraction) {
        // The largest itself, down to what is less than half of the least code.
        for (uint32 exponent = 0; exponent < 22; ++exponent) {
            const float value = static_cast<float>(fraction) / static_cast<float>(1u << exponent);
            if (value > static_cast<float>(largest)) {
                continue;
            }
            const uint32 expected = both_codes(value / scale);
            products += both_codes(value * inverse) != expected;
            for (uint32 units = 1; units <= MOST_LACKING; ++units) {
                const Divisor divisor = divisor_lacking(units);
                quotients += ptx::pack_e4m3(divisor.divide(value), divisor.divide(-value)) != expected;
            }
        }
    }
    return quotients;
}

// How many scales of `largest`, of 16 bits, differ.
__device__ __forceinline__ uint32 count_scales(float largest) {
    const float expected = largest / 448.0f, scale = divided_by_448(largest);
    // Smaller ones are not taken: a scale has a lower bound.
    const bool differs = expected >= 0x1p-100f && __float_as_uint(scale) != __float_as_uint(expected);
    const bool is_nan = expected != expected;
    return (is_nan ? scale == scale : differs) + (ue8m0_for_e4m3(largest) != to_ue8m0(expected));
}

__device__ __forceinline__ void division(const DivisionParameters& parameters) {
    ptx::launch_dependents();
    ptx::wait_for_prior_grids();
    if (threadIdx.x != 0) {
        return;
    }
    uint32 quotients = 0, products = 0, scales = count_scales(1e-10f);
    const uint32 first = 1u << (parameters.fraction_bits - 1);
    for (uint32 largest = first; largest < 2 * first; ++largest) {
        quotients += count_quotients(parameters, largest, products);
        const float inverse = 448.0f / static_cast<float>(largest);
        const uint32 lacking = __float_as_uint(inverse) - __float_as_uint(nearly_inverse_scale(largest));
        scales += lacking < 2 || lacking > MOST_LACKING;
    }
    const Divisor by_infinity(__uint_as_float(0x7f800000u), 0.0f);
    quotients += by_infinity.divide(1.0f) != 0.0f;
    quotients += by_infinity.divide(__uint_as_float(0x7f800000u)) == by_infinity.divide(__uint_as_float(0x7f800000u));
    for (uint32 bits = 0; bits < 0x8000u; ++bits) {
        float values[2];
        BFloat16::unpack(bits, values);
        scales += count_scales(values[0]);
        Float16::unpack(bits, values);
        scales += count_scales(values[0]);
    }
    ptx::store_device(parameters.result, quotients);
    ptx::store_device(parameters.result + sizeof(uint32), products);
    ptx::store_device(parameters.result + 2 * sizeof(uint32), scales);
}

}  // namespace lamport

extern "C" __global__ void division(const __grid_constant__ lamport::DivisionParameters parameters) {
    lamport::division(parameters);
}
