// FP8 e4m3 with a scale for each row, from its largest magnitude, that values are divided by.
//
// The magnitudes are those of rounded values, which are not known before the row's factor is, behind the norm's
// barrier. But that factor is positive, so that the largest product of value and weight, taken before that barrier,
// nearly gives the largest magnitude: within the few roundings of either. Nearly always all that lies within these
// rounds to the same 16-bit value, which is then the one. Only where it does not, the block looks, behind another
// barrier.
#pragma once

#include "device/divide.cuh"
#include "device/reduce.cuh"
#include "sink/quantiser.cuh"

namespace lamport {

template <class Value, uint32 vectors>
class Fp8Token {
    static_assert(vectors <= 1, "a thread keeps one vector at most");

public:
    struct Shared {
        uint32 products[MAX_WARPS];
        uint32 largest[MAX_WARPS];
    };

    // Takes the vector that the thread keeps.
    template <class RowVector>
    __device__ __forceinline__ void take(bool has, const RowVector& vector) {
        product_ = has ? __float_as_uint(vector.largest_product()) : 0;
    }

    // Before the norm's barrier. Where the thread keeps none, there is nothing to tell yet.
    __device__ __forceinline__ void share(Shared& shared) const {
        if constexpr (vectors > 0) {
            leave(shared.products, product_);
        }
    }

    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const AllReduceRmsNormQuantParameters& parameters,
                                        Shared& shared, float row_scale) const {
        uint32 largest = 0;
        if (vectors == 0 || !round_largest<Rows>(__uint_as_float(of_block(shared.products)), row_scale, largest)) {
            rows.for_each_column([&](Column column) {
                const Vector vector = rows.normalised(column, row_scale);
                largest = max(largest, largest_magnitude_if(rows.has(column), vector));
            });
            // A warp's lanes may have had more of a row than others.
            __syncwarp();
            leave(shared.largest, largest);
            __syncthreads();
            largest = of_block(shared.largest);
        }
        const float magnitude = ptx::larger_or_nan(LEAST, lamport::magnitude<Value>(largest));
        const float scale = divided_by_448(magnitude);
        ptx::store_output_word_if(threadIdx.x == 0 && rows.has(0), scale_place(parameters, rows.token(), 0),
                                  __float_as_uint(scale));
        const Divisor divisor(scale, nearly_inverse_scale(magnitude));
        rows.for_each_column([&](Column column) {
            const Vector vector = rows.normalised(column, row_scale);
            store_normalised(rows, parameters, column, vector);
            store_fp8(rows, parameters, column, vector, [&](float value) { return divisor.divide(value); });
        });
    }

private:
    // Rows of smaller values have the scale of this one: rows of zeros do.
    static constexpr float LEAST = 1.0f / 512.0f;
    // Four times what five roundings can amount to.
    static constexpr float ERROR = 1.0f / (1 << 20);
    // From here on those errors are relative, however large a weight is: the normalised value that it multiplies may
    // have lost all but 2^-150. (Smaller results are rare.)
    static constexpr float LEAST_RESULT = 0.5f;
    static constexpr float LARGEST_FLOAT = 3.4028235e38f;

    static __device__ __forceinline__ void leave(uint32 (&places)[MAX_WARPS], uint32 value) {
        const uint32 most = warp_maximum(value);
        if (threadIdx.x % WARP_THREADS == 0) {
            places[threadIdx.x / WARP_THREADS] = most;
        }
    }

    static __device__ __forceinline__ uint32 of_block(const uint32 (&places)[MAX_WARPS]) {
        const uint32 lane = threadIdx.x % WARP_THREADS;
        return warp_maximum(lane < blockDim.x / WARP_THREADS ? places[lane] : 0);
    }

    // The largest magnitude, from the largest product. False if it is not certain; then it is left alone. All threads
    // have the same answer.
    template <class Rows>
    static __device__ __forceinline__ bool round_largest(float product, float row_scale, uint32& largest) {
        const float result = product * row_scale;
        const float bounds[Value::PER_WORD] = {result * (1.0f - ERROR), result * (1.0f + ERROR)};
        const uint32 rounded = Value::pack(bounds);
        if (Rows::takes_results()) {
            // The product is the largest value itself, which both bounds round to.
            largest = rounded >> 16;
            return true;
        }
        // Written so that NaN is not.
        const bool is_certain =
            result >= LEAST_RESULT && bounds[1] <= LARGEST_FLOAT && rounded >> 16 == (rounded & 0xffffu);
        largest = is_certain ? rounded >> 16 : largest;
        return is_certain;
    }

    // The largest product of a value and its weight, of this thread, as bits.
    uint32 product_ = 0;
};

}  // namespace lamport
