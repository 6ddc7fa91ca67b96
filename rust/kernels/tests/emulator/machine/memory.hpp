// The memory of all ranks. A relaxed store is seen late: it waits, word by word, until the machine delivers it, in any
// order but that of the stores to one word. A relaxed load may see the word as it was before the last store to it,
// unless something orders the two, or the clock has moved since.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
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
    // Tensors of one device: weak. Weights may be read before the grid-dependency wait.
    input,
    output,
    weight,
};

// Who accesses memory: a thread of a block of a grid, and what is ordered ahead of it.
struct Accessor {
    std::uint32_t rank = 0;
    std::uint64_t block = 0;
    std::uint64_t thread = 0;
    // Whether it has waited for the grids before its own.
    bool has_waited = false;
    // Stores delivered up to this time cannot be missed.
    std::uint64_t floor = 0;
    // Stores of the own block up to this number come before whatever the thread does now.
    std::uint64_t watermark = 0;
};

// A store that has not been delivered.
struct Store {
    std::uint32_t word;
    bool sets_bits;
    std::uint32_t rank;
    std::uint64_t block;
    std::uint64_t thread;
    // Among those of the block.
    std::uint64_t number;
    // Of a grid: how many of its stores have not been delivered. Null in an entry that is not in use.
    std::size_t* outstanding;
    // The next store to the same word, or the next free entry: an index, and 1.
    std::uint32_t next = 0;
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
    void store(Address address, const Store& store);
    // Delivers the rank's oldest store to the word. Returns whether a thread polls the word.
    bool deliver(std::uint32_t rank, Address address);
    // Says that a thread polls the word: the next delivery tells.
    void poll(Address address) { history(address).is_polled = true; }
    // Whether a store that comes before what the thread does now waits.
    bool has_prior_store(const Accessor& accessor) const;

    // Adds 1 at once, or sets the word to 0 if it is `last`; returns the word before.
    std::uint32_t increment(const Accessor& accessor, Address address, std::uint32_t last);

    // Counts deliveries.
    std::uint64_t time() const { return time_; }
    // Says that the clock has moved: what was delivered before is missed by nobody.
    void settle() { settled_ = time_; }

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
        bool is_polled = false;
        // The oldest store that waits: an index, and 1.
        std::uint32_t waiting = 0;
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
    void write(Address address, History& history, std::uint32_t word, std::uint64_t block);
    static bool comes_before(const Store& store, const Accessor& accessor);

    // By where they begin.
    std::map<Address, Region> regions_;
    // Those found lately.
    std::array<Region*, 256> found_{};
    // That wait, in lists by word.
    std::vector<Store> stores_;
    std::uint32_t free_ = 0;
    std::uint64_t time_ = 1;
    // When the clock moved last.
    std::uint64_t settled_ = 0;
    std::string error_;
};

}  // namespace emulator
