// The source of a sum: a tensor of any number of elements as 16-byte vectors. The last may be partial: its missing
// elements read as 0 and are not written.
#pragma once

#include "device/keep.cuh"
#include "device/ptx.cuh"
#include "protocol/sentinel.cuh"

namespace lamport {

class TensorVectors {
public:
    // `begin` is a multiple of 16; `bytes` of 2.
    __device__ __forceinline__ TensorVectors(Address begin, uint64 bytes)
        : begin_(begin),
          whole_(static_cast<uint32>(bytes / VECTOR_BYTES)),
          tail_halves_(static_cast<uint32>(bytes % VECTOR_BYTES) / HALF_BYTES) {}

    __device__ __forceinline__ Address address(uint32 index) const { return begin_ + uint64{index} * VECTOR_BYTES; }

    __device__ __forceinline__ bool is_whole(uint32 index) const { return index < whole_; }

    // Loads vector `index`, which is at `address`, if it is whole; otherwise it is 0. There is no branch: the loads of
    // a thread that makes several are in flight together.
    __device__ __forceinline__ Vector load_whole(uint32 index, Address address) const {
        return load_if(is_whole(index), address);
    }

    // Likewise, where it is known before whether it is.
    static __device__ __forceinline__ Vector load_if(bool is_whole, Address address) {
        Vector vector{{0, 0, 0, 0}};
        ptx::load_input_if(is_whole, address, vector);
        return vector;
    }

    // Completes what `load_whole` returned, if it is the partial vector.
    __device__ __forceinline__ void add_tail(uint32 index, Address address, Vector& vector) const {
        if (index == whole_ && tail_halves_ != 0) {
            load_tail(address, vector);
        }
    }

    // Stores vector `index`, which is at `address`. Vectors beyond the end are not written.
    __device__ __forceinline__ void store(uint32 index, Address address, const Vector& vector) const {
        ptx::store_output_if(is_whole(index), address, vector);
        if (index == whole_ && tail_halves_ != 0) {
            store_tail(address, vector);
        }
    }

private:
    static constexpr uint32 HALF_BYTES = 2;
    static constexpr uint32 HALVES_PER_WORD = sizeof(uint32) / HALF_BYTES;
    static constexpr uint32 HALF_BITS = 8 * HALF_BYTES;

    __device__ __forceinline__ void load_tail(Address tail, Vector& vector) const {
        // One by one: it is one thread's work, and the code is in the way of all.
#pragma unroll 1
        for (uint32 half = tail_halves_; half-- > 0;) {
            vector = shifted_up(vector);
            vector.words[0] |= ptx::load_input_half(tail + half * HALF_BYTES);
        }
    }

    __device__ __forceinline__ void store_tail(Address tail, Vector vector) const {
#pragma unroll 1
        for (uint32 half = 0; half < tail_halves_; ++half) {
            ptx::store_output_half(tail + half * HALF_BYTES, vector.words[0]);
            vector = shifted_down(vector);
        }
    }

    // Moves every half to the next place.
    static __device__ __forceinline__ Vector shifted_up(const Vector& vector) {
        Vector result;
        uint32 carried = 0;
#pragma unroll
        for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
            result.words[word] = vector.words[word] << HALF_BITS | carried;
            carried = vector.words[word] >> (HALVES_PER_WORD - 1) * HALF_BITS;
        }
        return result;
    }

    // Moves every half to the place before.
    static __device__ __forceinline__ Vector shifted_down(const Vector& vector) {
        Vector result;
#pragma unroll
        for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
            const uint32 next = word + 1 < VECTOR_WORDS ? vector.words[word + 1] : 0;
            result.words[word] = vector.words[word] >> HALF_BITS | next << HALF_BITS;
        }
        return result;
    }

    Address begin_;
    uint32 whole_;
    // 16-bit elements, or halves of 32-bit ones, of the partial vector.
    uint32 tail_halves_;
};

// What a rank contributes is a tensor of its own.
struct TensorSource : TensorVectors {
    template <class Parameters>
    __device__ __forceinline__ explicit TensorSource(const Parameters& parameters)
        : TensorVectors(parameters.input, parameters.bytes) {}
};

}  // namespace lamport
