// The sink of rows: a residual is added to the sum over ranks, and the rows are normalised by their mean and variance.
//
//   residual_output = input summed over ranks + residual, if there is one
//   output          = layer_norm(residual_output)
//
// The sum is that of residual_rms_norm.cuh, rounded once. The norm is of the rounded rows, in float32, rounded once:
//
//   y = (x - mean) * rsqrt(mean of (x - mean)^2 + epsilon) * weight + bias
//
// Deviations are squared once the mean is known: a mean of squares minus the square of the mean would cancel.
#pragma once

#include "sink/residual_rms_norm.cuh"

namespace lamport {

// `norm` has no bias of the weights.
struct AllReduceLayerNormParameters : AllReduceRmsNormParameters {
    // One for each column, of the weights' dtype. 0 if there is none.
    Address bias;
};

ASSERT_LAYOUT_OF_AllReduceLayerNorm(AllReduceLayerNormParameters);

// One vector of a row, its weights and its biases.
template <class Value>
class LayerNormVector {
public:
    __device__ __forceinline__ void load_weights(const RmsNorm& norm, uint32 column) {
        row_.load_weights(norm, column);
    }

    // -0.0 where there is none: to add it changes nothing.
    __device__ __forceinline__ void load_bias(const AllReduceLayerNormParameters& parameters, uint32 column) {
        bias_.fill_weights(-0.0f);
        if (parameters.bias != 0) {
            RmsNorm bias = parameters.norm;
            bias.weight = parameters.bias;
            bias_.load_weights(bias, column);
        }
    }

    __device__ __forceinline__ void take(const Vector& row) { row_.take(row); }

    // Two chains of additions, since one would be as long as the vector.
    __device__ __forceinline__ float sum() const {
        float even = 0.0f, odd = 0.0f;
#pragma unroll
        for (uint32 i = 0; i < PER_VECTOR<Value>; i += 2) {
            even += row_.value(i);
            odd += row_.value(i + 1);
        }
        return even + odd;
    }

    __device__ __forceinline__ float squares_around(float mean) const {
        float even = 0.0f, odd = 0.0f;
#pragma unroll
        for (uint32 i = 0; i < PER_VECTOR<Value>; i += 2) {
            const float first = row_.value(i) - mean, second = row_.value(i + 1) - mean;
            even = fmaf(first, first, even);
            odd = fmaf(second, second, odd);
        }
        return even + odd;
    }

    // The vector of the result, rounded once.
    __device__ __forceinline__ Vector normalised(float mean, float scale) const {
        Vector result;
#pragma unroll
        for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
            float values[Value::PER_WORD];
#pragma unroll
            for (uint32 i = 0; i < Value::PER_WORD; ++i) {
                const uint32 index = word * Value::PER_WORD + i;
                values[i] = fmaf((row_.value(index) - mean) * scale, row_.weight(index), bias_.weight(index));
            }
            result.words[word] = Value::pack(values);
        }
        return result;
    }

private:
    NormVector<Value> row_;
    // Its weights are the biases.
    NormVector<Value> bias_;
};

// What ResidualRmsNorm takes of an `Output`: its own result is not asked for.
template <class Value, uint32 vectors>
class LayerNormOutput {
public:
    using Parameters = AllReduceLayerNormParameters;

    // Of a block.
    struct Shared {
        // Of squares; those of sums are the norm's.
        WarpPartials squares;
    };

    __device__ __forceinline__ explicit LayerNormOutput(const Parameters&) {}

    static __device__ __forceinline__ void poison(const Parameters& parameters, uint64 bytes) {
        fill_with_nan(parameters.output, bytes);
    }
};

// A thread's way through the rows of its block.
template <class Value, uint32 vectors>
class ResidualLayerNorm : public ResidualRmsNorm<Value, vectors, LayerNormOutput> {
    using Base = ResidualRmsNorm<Value, vectors, LayerNormOutput>;
    using Base::parameters_;
    static_assert(vectors <= 1, "a thread keeps one vector at most");

public:
    using Parameters = typename Base::Parameters;
    using Shared = typename Base::Shared;
    using Base::has;

    // All threads of the block call it. `shared` is theirs.
    __device__ __forceinline__ ResidualLayerNorm(const Parameters& parameters, Shared& shared)
        : Base(parameters, shared), shared_(shared) {
        pad(parameters.norm, shared.squares);
    }

    __device__ __forceinline__ void load_weights(Column column) {
        if constexpr (vectors > 0) {
            vector_.load_weights(parameters_.norm, Base::within(column));
        }
    }

    // Stores what `add_up` returned, and takes it into the row's sum.
    __device__ __forceinline__ void take(Column column, const Vector& vector) {
        Base::store(parameters_.residual_output, column, vector);
        vector_.take(vector);
        sum_ += has(column) ? vector_.sum() : 0.0f;
    }

    // Normalises the row, of which every vector was taken. All threads of the block call it.
    __device__ __forceinline__ void finish() {
        // Lanes leave the polling at different times.
        __syncwarp();
        if constexpr (vectors > 0) {
            // What was in flight has left its registers.
            vector_.load_bias(parameters_, Base::within(Column{threadIdx.x, 0}));
        }
        float2 terms;
        const float mean = block_sum(sum_, shared_.partials, terms) * terms.x;
        sum_ = 0.0f;
        float squares = 0.0f;
        Base::for_each_column([&](Column column) {
            take_again(column);
            squares += has(column) ? vector_.squares_around(mean) : 0.0f;
        });
        const float scale = row_scale(squares, shared_.squares);
        Base::for_each_column([&](Column column) {
            if constexpr (vectors == 0) {
                take_again(column);
                vector_.load_weights(parameters_.norm, column);
                vector_.load_bias(parameters_, column);
            }
            Base::store(parameters_.output, column, vector_.normalised(mean, scale));
        });
    }

private:
    // A vector that is not kept.
    __device__ __forceinline__ void take_again(Column column) {
        if constexpr (vectors == 0) {
            vector_.take(Base::load(parameters_.residual_output, column));
        }
    }

    Shared& shared_;
    // Of what was taken of the present row.
    float sum_ = 0.0f;
    LayerNormVector<Value> vector_;
};

}  // namespace lamport
