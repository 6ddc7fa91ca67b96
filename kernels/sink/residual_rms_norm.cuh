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
template <class Value, uint32 vectors>
class StoreRows {
public:
    using Parameters = AllReduceRmsNormParameters;

    // Of a block.
    struct Shared {};

    // Before the wait for prior grids.
    __device__ __forceinline__ explicit StoreRows(const Parameters&) {}

    // Takes a vector that the thread keeps, with its weights, if it `has` one.
    __device__ __forceinline__ void take(const Parameters&, bool, const NormVector<Value>&) {}

    // Before the norm's barrier, when all of the row was taken. All threads of the block call it.
    __device__ __forceinline__ void share(const Parameters&, Shared&) const {}

    // Behind it: stores the present row of `rows`, whose factor is `scale`. All threads of the block call it.
    template <class Rows>
    __device__ __forceinline__ void put(Rows& rows, const Parameters& parameters, Shared&, float scale) const {
        rows.for_each_column([&](Column column) {
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
template <class Value, uint32 vectors, template <class, uint32> class Output = StoreRows>
class ResidualRmsNorm : Output<Value, vectors>,
                        public BlockRows<Value, vectors, typename Output<Value, vectors>::Parameters> {
    using Rows = BlockRows<Value, vectors, typename Output<Value, vectors>::Parameters>;

protected:
    using Rows::parameters_;

public:
    using Parameters = typename Output<Value, vectors>::Parameters;
    using Rows::address;
    using Rows::has;
    using Rows::load;
    using Rows::store;
    using Rows::VECTORS;

    // Of a block.
    struct Shared : Output<Value, vectors>::Shared {
        WarpPartials partials;
    };

    // The part of the block that speaks.
    static __device__ __forceinline__ void speak(const Parameters& parameters) {
        const uint64 bytes = uint64{parameters.tokens} * parameters.row_vectors * VECTOR_BYTES;
        lamport::speak(parameters.group, parameters.region_bytes, 2 * bytes, [&] {
            Output<Value, vectors>::poison(parameters, bytes);
            fill_with_nan(parameters.residual_output, bytes);
        });
    }

    // All threads of the block call it. `shared` is theirs.
    __device__ __forceinline__ ResidualRmsNorm(const Parameters& parameters, Shared& shared)
        : Output<Value, vectors>(parameters), Rows(parameters), shared_(shared) {
        pad(parameters.norm, shared.partials);
    }

    // Whether what an `Output` takes are the values that it gets back.
    static __device__ __forceinline__ constexpr bool takes_results() { return false; }

    // Loads what `add_up` adds: early, because it takes a while.
    __device__ __forceinline__ void load_residual(Column column) {
        // -0.0 in every element: to add it changes nothing, the sign of a zero included.
        constexpr uint32 NOTHING = PER_VECTOR<Value> == 4 ? 0x80000000u : 0x80008000u;
        residual_[column.place] = Vector{{NOTHING, NOTHING, NOTHING, NOTHING}};
        const bool is_there = has(column) && parameters_.residual != 0;
        ptx::load_input_if(is_there, address(parameters_.residual, column), residual_[column.place]);
    }

    // Loads the weights of a vector that the thread keeps: early too, unless there are many.
    __device__ __forceinline__ void load_weights(Column column) {
        if constexpr (vectors > 0 && vectors <= MOST_WITH_EARLY_WEIGHTS) {
            load_kept_weights(column);
        }
    }

    // The sum of all ranks and the residual, rounded.
    template <uint32 capacity>
    __device__ __forceinline__ Vector add_up(const RankVectors<capacity>& of_ranks, Column column) const {
        float sum[PER_VECTOR<Value>];
        sum_in_rank_order<Value>(of_ranks, parameters_.group, sum);
        float residual[PER_VECTOR<Value>];
        unpack<Value>(residual_[column.place], residual);
#pragma unroll
        for (uint32 i = 0; i < PER_VECTOR<Value>; ++i) {
            sum[i] += residual[i];
        }
        return round_sum<Value>(sum);
    }

    // Stores what `add_up` returned, here or on the row's owner, and takes it into the row's sum of squares.
    __device__ __forceinline__ void take(Column column, const Vector& vector) {
        store(parameters_.residual_output, column, vector);
        squares_ += has(column) ? sum_of_squares<Value>(vector) : 0.0f;
        if constexpr (vectors > MOST_WITH_EARLY_WEIGHTS) {
            packed_[column.place] = vector;
        } else if constexpr (vectors > 0) {
            vectors_[column.place].take(vector);
            Output<Value, vectors>::take(parameters_, has(column), vectors_[column.place]);
        }
    }

    // Normalises the row, of which every vector was taken. All threads of the block call it.
    __device__ __forceinline__ void finish() {
        // Lanes leave the polling at different times.
        __syncwarp();
        if constexpr (vectors > MOST_WITH_EARLY_WEIGHTS) {
            Rows::for_each_column([&](Column column) {
                load_kept_weights(column);
                vectors_[column.place].take(packed_[column.place]);
            });
        }
        Output<Value, vectors>::share(parameters_, shared_);
        const float scale = row_scale(squares_, shared_.partials);
        squares_ = 0.0f;
        Output<Value, vectors>::put(*this, parameters_, shared_, scale);
    }

    // Vector `column` of the normalised row, whose factor is `scale`.
    __device__ __forceinline__ Vector normalised(Column column, float scale) {
        if constexpr (vectors == 0) {
            vectors_[0].load_weights(parameters_.norm, column);
            vectors_[0].take(load(parameters_.residual_output, column));
        }
        return vectors_[column.place].scaled(scale);
    }

private:
    // The weights and the values of more vectors than this, beside what is in flight, would leave a thread too few
    // registers. They are loaded, and unpacked, once all of the row has come.
    static constexpr uint32 MOST_WITH_EARLY_WEIGHTS = 2;

    __device__ __forceinline__ void load_kept_weights(Column column) {
        vectors_[column.place].load_weights(parameters_.norm, Rows::within(column));
    }

    Shared& shared_;
    // Of what was taken of the present row.
    float squares_ = 0.0f;
    Vector residual_[KEPT<vectors>];
    NormVector<Value> vectors_[KEPT<vectors>];
    Vector packed_[KEPT<vectors>];
};

}  // namespace lamport
