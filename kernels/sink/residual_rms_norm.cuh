// The sink of rows: a residual is added to the sum over ranks, and the rows are normalised.
//
//   residual_output = input summed over ranks + residual, if there is one
//   output          = rms_norm(residual_output)
//
// The sum and the residual are added in float32 and rounded once; the norm is of the rounded rows, as if it were an
// operation of its own. What becomes of the normalised rows is the `Output`'s: see StoreRows.
#pragma once

#include "protocol/control.cuh"
#include "protocol/group.cuh"
#include "protocol/vector_routes.cuh"
#include "sink/block_rows.cuh"
#include "sink/rms_norm.cuh"

namespace lamport {

struct AllReduceRmsNormParameters {
    Group group;
    Address input;
    // 0 if there is none.
    Address residual;
    // May be the input.
    Address output;
    // May be the residual.
    Address residual_output;
    RmsNorm norm;
    // Bytes of the operation's regions.
    uint32 region_bytes;
    uint32 tokens;
    // 16-byte vectors of a row.
    uint32 row_vectors;
    uint32 reserved;
};

ASSERT_LAYOUT_OF_AllReduceRmsNorm(AllReduceRmsNormParameters);

// The normalised rows are the result.
template <class Value, bool held>
class StoreRows {
public:
    using Parameters = AllReduceRmsNormParameters;

    // Of a block.
    struct Shared {};

    // Before the wait for prior grids.
    __device__ __forceinline__ explicit StoreRows(const Parameters&) {}

    // Takes the thread's vector of a held row, with its weights, if it `has` one.
    __device__ __forceinline__ void take(const Parameters&, bool, const NormVector<Value>&) {}

    // Before the norm's barrier, when all of the row was taken. All threads of the block call it.
    __device__ __forceinline__ void share(const Parameters&, Shared&) const {}

    // Behind it: stores the present row of `rows`, whose factor is `scale`. All threads of the block call it.
    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const Parameters& parameters, Shared&, float scale) const {
        rows.for_each_column([&](uint32 column) {
            const Vector vector = rows.normalised(column, scale);
            rows.store(parameters.output, column, vector);
        });
    }

    // A warp writes NaN over what `put` stores, `bytes` bytes of normalised rows.
    static __device__ __forceinline__ void poison(const Parameters& parameters, uint64 bytes) {
        fill_with_nan(parameters.output, bytes);
    }
};

// A thread's way through the rows of its block. An empty `Output` takes no room, as a base class.
template <class Value, bool held, template <class, bool> class Output = StoreRows>
class ResidualRmsNorm : Output<Value, held>, public BlockRows<Value, held, typename Output<Value, held>::Parameters> {
    using Rows = BlockRows<Value, held, typename Output<Value, held>::Parameters>;
    using Rows::parameters_;

public:
    using Parameters = typename Output<Value, held>::Parameters;
    using Rows::address;
    using Rows::has;
    using Rows::load;
    using Rows::store;
    static constexpr bool HELD = held;

    // Of a block.
    struct Shared : Output<Value, held>::Shared {
        WarpPartials partials;
    };

    // The part of the block that speaks.
    static __device__ __forceinline__ void speak(const Parameters& parameters) {
        const uint64 bytes = uint64{parameters.tokens} * parameters.row_vectors * VECTOR_BYTES;
        lamport::speak(parameters.group, parameters.region_bytes, 2 * bytes, [&] {
            Output<Value, held>::poison(parameters, bytes);
            fill_with_nan(parameters.residual_output, bytes);
        });
    }

    // All threads of the block call it. `shared` is theirs.
    __device__ __forceinline__ ResidualRmsNorm(const Parameters& parameters, Shared& shared)
        : Output<Value, held>(parameters), Rows(parameters), shared_(shared) {
        pad(parameters.norm, shared.partials);
    }

    // Whether what an `Output` takes are the values that it gets back.
    static __device__ __forceinline__ constexpr bool takes_results() { return false; }

    // Loads what `add_up` adds: early, because it takes a while.
    __device__ __forceinline__ void load_residual(uint32 column) {
        // -0.0 in every element: to add it changes nothing, the sign of a zero included.
        constexpr uint32 NOTHING = PER_VECTOR<Value> == 4 ? 0x80000000u : 0x80008000u;
        residual_ = Vector{{NOTHING, NOTHING, NOTHING, NOTHING}};
        const bool is_there = has(column) && parameters_.residual != 0;
        ptx::load_input_if(is_there, address(parameters_.residual, column), residual_);
    }

    // Loads the weights of a held row: early too.
    __device__ __forceinline__ void load_weights(uint32 column) {
        if constexpr (held) {
            vector_.load_weights(parameters_.norm, has(column) ? column : 0);
        }
    }

    // The sum of all ranks and the residual, rounded and scrubbed.
    template <uint32 capacity>
    __device__ __forceinline__ Vector add_up(const RankVectors<capacity>& vectors) const {
        float sum[PER_VECTOR<Value>];
        sum_in_rank_order<Value>(vectors, parameters_.group, sum);
        float residual[PER_VECTOR<Value>];
        unpack<Value>(residual_, residual);
#pragma unroll
        for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
            sum[i] += residual[i];
        }
        return round_and_scrub<Value>(sum);
    }

    // Stores what `add_up` returned, here or on the row's owner, and takes it into the row's sum of squares.
    __device__ __forceinline__ void take(uint32 column, const Vector& vector) {
        store(parameters_.residual_output, column, vector);
        squares_ += has(column) ? sum_of_squares<Value>(vector) : 0.0f;
        if constexpr (held) {
            vector_.take(vector);
            Output<Value, held>::take(parameters_, has(column), vector_);
        }
    }

    // Normalises the row, of which every vector was taken. All threads of the block call it.
    __device__ __forceinline__ void finish() {
        // Lanes leave the polling at different times.
        __syncwarp();
        Output<Value, held>::share(parameters_, shared_);
        const float scale = row_scale(squares_, shared_.partials);
        squares_ = 0.0f;
        Output<Value, held>::put(*this, parameters_, shared_, scale);
    }

    // Vector `column` of the normalised row, whose factor is `scale`.
    __device__ __forceinline__ Vector normalised(uint32 column, float scale) {
        if constexpr (!held) {
            vector_.load_weights(parameters_.norm, column);
            vector_.take(load(parameters_.residual_output, column));
        }
        return vector_.scaled(scale);
    }

private:
    Shared& shared_;
    // Of what was taken of the present row.
    float squares_ = 0.0f;
    // Of the vector in hand.
    Vector residual_;
    NormVector<Value> vector_;
};

}  // namespace lamport
