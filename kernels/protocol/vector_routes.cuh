// An exchange of vectors: a thread has a vector for every peer, and awaits one of each.
//
// `capacity` is the largest group that a kernel is compiled for. Arrays have as many entries and constant indices, so
// they stay in registers; what belongs to ranks that do not exist is predicated off.
#pragma once

#include "device/keep.cuh"
#include "device/numeric.cuh"
#include "device/ptx.cuh"
#include "protocol/group.cuh"
#include "protocol/sentinel.cuh"
#include "protocol/wait.cuh"

namespace lamport {

// One vector of each rank, by rank. The own one is the thread's own; it never travels.
template <uint32 capacity>
struct RankVectors {
    Vector of[capacity];

    // Before `await_all`, which fills in the others'.
    __device__ __forceinline__ void fill(const Vector& own) {
#pragma unroll
        for (uint32 rank = 0; rank < capacity; ++rank) {
            of[rank] = own;
        }
    }

    // Likewise, but with the own vector in its own place only, and `word` in the others: where a second `await_all`
    // follows, it takes fewer registers.
    __device__ __forceinline__ void fill_own(uint32 own_rank, const Vector& own, uint32 word) {
#pragma unroll
        for (uint32 rank = 0; rank < capacity; ++rank) {
            of[rank] = rank == own_rank ? own : Vector{{word, word, word, word}};
        }
    }

    __device__ __forceinline__ bool have_arrived() const {
        int32 least = least_word(of[0]);
#pragma unroll
        for (uint32 rank = 1; rank < capacity; ++rank) {
            least = min(least, least_word(of[rank]));
        }
        return has_arrived(least);
    }

    // Makes those NaN that have not arrived.
    __device__ __forceinline__ void spoil_missing() {
#pragma unroll
        for (uint32 rank = 0; rank < capacity; ++rank) {
            if (!has_arrived(of[rank])) {
                of[rank] = nan_vector();
            }
        }
    }

    // The ranks, a bit each, whose vectors have not arrived.
    __device__ __forceinline__ uint32 missing() const {
        uint32 ranks = 0;
#pragma unroll
        for (uint32 rank = 0; rank < capacity; ++rank) {
            ranks |= has_arrived(of[rank]) ? 0 : 1u << rank;
        }
        return ranks;
    }
};

// Awaits the vector at `address`, which rank `source` sends once it has the others'. False, and NaN, if it did not
// come: see `await`.
__device__ __forceinline__ bool await_result(const Group& group, uint32 source, Address address, Vector& vector) {
    const auto look = [&] {
        vector = ptx::load_system_vector(address);
        return has_arrived(vector);
    };
    const bool came = await<Awaited::second_hand>(group, look, [&] { return 1u << source; });
    if (!came) {
        vector = nan_vector();
    }
    return came;
}

// The way of a thread's vectors to the peers, and of theirs back, as if in slot 0. Made before the grid-dependency
// wait: then only the slot's offset is to be added when the vector is ready.
template <uint32 capacity>
class VectorRoutes {
public:
    // `push` is where the vectors go in the peers' blocks, `arrival` where rank 0's arrives in the own block, and
    // `region_bytes` what lies between that and the next rank's.
    __device__ __forceinline__ VectorRoutes(const Group& group, uint64 push, uint64 arrival, uint32 region_bytes)
        : group_(group), push_place_(push), arrival_(keep(group.own + arrival)), region_bytes_(region_bytes) {
#pragma unroll
        for (uint32 i = 0; i < capacity - 1; ++i) {
            push_[i] = keep(group.peers[i] + push);
        }
    }

    // Pushes `vector`, already scrubbed, to peer `i`, counted as in `Group::peers`. `offset` is the slot's, and
    // whatever else the vector is away from the routes' vector.
    __device__ __forceinline__ void push(uint32 i, uint64 offset, const Vector& vector) const {
        ptx::store_system(push_[i] + offset, vector);
    }

    __device__ __forceinline__ void push_to_all(uint64 offset, const Vector& vector) const {
#pragma unroll
        for (uint32 i = 0; i < capacity - 1; ++i) {
            if (has_rank<capacity>(group_, i + 1)) {
                push(i, offset, vector);
            }
        }
    }

    // Likewise, but computes the way again: a kernel that pushes before it waits, and again after that, need not keep
    // it in registers.
    __device__ __forceinline__ void push_to_all_anew(uint64 offset, const Vector& vector) const {
#pragma unroll
        for (uint32 i = 0; i < capacity - 1; ++i) {
            if (has_rank<capacity>(group_, i + 1)) {
                ptx::store_system(group_.peers[i] + push_place_ + offset, vector);
            }
        }
    }

    // Awaits a vector of each rank for which `awaits(rank)`. The other entries, the own rank's and those of ranks that
    // do not exist, stay as they are, and must not hold the sentinel. False, and NaN, if a rank did not come: see
    // `await`.
    template <Awaited awaited = Awaited::first_hand, class Awaits>
    __device__ __forceinline__ bool await_all(uint64 offset, Awaits awaits, RankVectors<capacity>& vectors) const {
        const Address first = arrival_ + offset;
        const auto look = [&] {
            // All loads before the first comparison, so that they are in flight together.
#pragma unroll
            for (uint32 rank = 0; rank < capacity; ++rank) {
                ptx::load_system_if(awaits(rank), first + uint64{rank} * region_bytes_, vectors.of[rank]);
            }
            return vectors.have_arrived();
        };
        const bool came = await<awaited>(group_, look, [&] { return vectors.missing(); });
        if (!came) {
            vectors.spoil_missing();
        }
        return came;
    }

    // Awaits a vector of every peer if `active`, and none otherwise.
    template <Awaited awaited = Awaited::first_hand>
    __device__ __forceinline__ bool await_peers(uint64 offset, bool active, RankVectors<capacity>& vectors) const {
        return await_all<awaited>(offset, [&](uint32 rank) { return active && is_peer(rank); }, vectors);
    }

    // Awaits the vector of rank `source`, which it sends once it has the others'.
    __device__ __forceinline__ bool await_result(uint32 source, uint64 offset, Vector& vector) const {
        return lamport::await_result(group_, source, arrival_ + offset + uint64{source} * region_bytes_, vector);
    }

    // Whether there is such a rank, and it is another.
    __device__ __forceinline__ bool is_peer(uint32 rank) const {
        return rank != group_.rank && has_rank<capacity>(group_, rank);
    }

private:
    const Group& group_;
    uint64 push_place_;
    Address push_[capacity - 1];
    Address arrival_;
    uint32 region_bytes_;
};

// The sum in float32 and in rank order: the same bits on every rank.
template <class Value, uint32 capacity>
__device__ __forceinline__ void sum_in_rank_order(const RankVectors<capacity>& vectors, const Group& group,
                                                  float (&sum)[PER_VECTOR<Value>]) {
#pragma unroll
    for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
#pragma unroll
        for (uint32 rank = 0; rank < capacity; ++rank) {
            float values[Value::PER_WORD];
            Value::unpack(vectors.of[rank].words[word], values);
#pragma unroll
            for (uint32 i = 0; i < Value::PER_WORD; ++i) {
                float& total = sum[word * Value::PER_WORD + i];
                if (rank == 0) {
                    total = values[i];
                } else {
                    total = has_rank<capacity>(group, rank) ? total + values[i] : total;
                }
            }
        }
    }
}

// Rounds a sum, once. To add +0.0 makes -0.0 the other zero, and changes nothing else: so a zero's sign depends neither
// on the ranks nor on the value beside it, and a sum of values of the type, which never rounds to zero, is no sentinel.
template <class Value>
__device__ __forceinline__ Vector round_sum(const float (&sum)[PER_VECTOR<Value>]) {
    Vector result;
#pragma unroll
    for (uint32 word = 0; word < VECTOR_WORDS; ++word) {
        float values[Value::PER_WORD];
#pragma unroll
        for (uint32 i = 0; i < Value::PER_WORD; ++i) {
            values[i] = sum[word * Value::PER_WORD + i] + 0.0f;
        }
        result.words[word] = Value::pack(values);
    }
    return result;
}

}  // namespace lamport
