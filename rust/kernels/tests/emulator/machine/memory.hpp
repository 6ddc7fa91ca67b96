// The memory of all ranks. A relaxed store is seen late: it waits, word by word, until the machine delivers it, in any
// order but that of the stores to one word. A relaxed load may see the word as it was before the last store to it, unless
// something orders the two.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "random.hpp"

namespace emulator {

using Address = std::uint64_t;

// What memory is for, and so which accesses to it are right.
enum class Kind : std::uint32_t {
    // Reached by all ranks: relaxed, system scope.
    system,
    // Of one device: relaxed.
    device,
    // Tensors of one device: weak.
    input,
    output,
};

// Who accesses memory: a thread of a block of a grid, and what is ordered ahead of it.
struct Accessor {
    std::uint32_t rank = 0;
    std::uint64_t block = 0;
    std::uint64_t thread = 0;
    // Stores delivered up to this time cannot be missed.
    std::uint64_t floor = 0;
    // Stores of the own block up to this number come before whatever the thread does now.
    std::uint64_t watermark = 0;
};

// A store that has not been delivered.
struct Store {
    std::uint32_t word;
    bool sets_bits;
    std::uint64_t block;
    std::uint64_t thread;
    // Among those of the block.
    std::uint64_t number;
    // Of a grid: how many of its stores have not been delivered.
    std::size_t* outstanding;
};

class Memory {
public:
    // Declares memory. `name` is for messages.
    void add(Address begin, std::uint64_t bytes, Kind kind, std::uint32_t rank, std::string name);

    // Whether `bytes` bytes at `address` are all declared, and may be accessed so. If not, `error` says why.
    bool check_relaxed(const Accessor& accessor, Address address, bool is_system);
    bool check_weak(const Accessor& accessor, Address address, std::uint32_t bytes, bool writes);
    const std::string& error() const { return error_; }

    // A relaxed load. With `may_be_stale` it may miss the last store.
    std::uint32_t load(const Accessor& accessor, Address address, bool may_be_stale);
    // The word as it is, with no thread's stores that wait.
    std::uint32_t word(Address address) const { return *reinterpret_cast<const std::uint32_t*>(address); }

    // Puts a store off.
    void store(const Accessor& accessor, Address address, const Store& store);
    // Delivers the oldest store to the word. Returns whether the word changed.
    bool deliver(std::uint32_t rank, Address address);
    // Whether a store that comes before what the thread does now waits.
    bool has_prior_store(const Accessor& accessor) const;

    // Adds 1 at once, or sets the word to 0 if it is `last`; returns the word before.
    std::uint32_t increment(const Accessor& accessor, Address address, std::uint32_t last);

    // Counts deliveries.
    std::uint64_t time() const { return time_; }

    // "rank 1's slots + 96", say.
    std::string name(Address address);

private:
    // What is known of a word beside its value.
    struct History {
        std::uint32_t before = 0;
        // When the last store was delivered, and whose it was.
        std::uint64_t time = 0;
        std::uint64_t block = 0;
        // Whether a thread has seen the last store.
        bool is_seen = false;
    };

    struct Region {
        Address begin;
        Address end;
        Kind kind;
        std::uint32_t rank;
        std::string name;
        std::vector<History> history;
    };

    Region* find(Address address);
    History& history(Address address);
    bool refuse(Address address, const char* why);
    void write(Address address, std::uint32_t word, std::uint64_t block);
    static bool comes_before(const Store& store, const Accessor& accessor);

    // By where they begin.
    std::map<Address, Region> regions_;
    // The last one found.
    Region* last_ = nullptr;
    // Per rank, by word; the oldest first.
    std::vector<std::unordered_map<Address, std::vector<Store>>> waiting_;
    std::uint64_t time_ = 1;
    std::string error_;
};

}  // namespace emulator
