// A group of devices, each with a stream of grids, and the scheduler: one operating system's thread runs every CUDA
// thread of every rank as a fiber, and decides by a seed who runs next and which store is delivered next.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fiber.hpp"
#include "memory.hpp"
#include "random.hpp"

namespace emulator {

constexpr std::uint32_t WARP_THREADS = 32;
constexpr std::uint32_t BARRIERS = 16;

struct Block;
struct Grid;

// What a thread waits for.
enum class State : std::uint8_t { nothing, word, barrier, warp, prior_grid, fence };

// A CUDA thread.
struct Thread {
    Context context;
    std::unique_ptr<Stack> stack;
    Block* block = nullptr;
    std::uint32_t index = 0;
    State state = State::nothing;
    Accessor accessor;
    // What it waits for: a barrier's number, or a word's address.
    std::uint64_t awaited = 0;
    // What it loaded last, and from where: who loads the same again polls.
    Address last_address = 0;
    std::uint32_t last_word = 0;
    // Of a warp-wide operation.
    std::uint64_t result = 0;
};

enum class WarpOperation : std::uint8_t { none, shuffle, bitwise_or, synchronise };

struct Warp {
    WarpOperation operation = WarpOperation::none;
    std::uint32_t arrived = 0;
    std::array<std::uint64_t, WARP_THREADS> values;
    std::array<std::uint32_t, WARP_THREADS> sources;
    // Of two threads that could run, the one with the greater priority does.
    std::uint32_t priority = 0;
};

struct Barrier {
    // 0: nobody has arrived.
    std::uint32_t expected = 0;
    std::uint32_t arrived = 0;
    std::vector<Thread*> waiting;
};

// A kernel's code, and where its shared variables are.
struct Kernel {
    void (*enter)(const void* parameters);
    char* shared_begin;
    char* shared_end;
};

struct Block {
    Grid* grid;
    std::uint32_t index;
    std::uint64_t id;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::array<Barrier, BARRIERS> barriers;
    // Shared variables, while another block of the kernel runs.
    std::vector<char> shared;
    std::vector<Thread*> ready;
    std::uint32_t priority = 0;
    std::uint32_t ended = 0;
    // Stores so far.
    std::uint64_t stores = 0;
    bool has_launched_dependents = false;
};

struct Grid {
    std::string name;
    Kernel kernel;
    std::uint32_t rank;
    // Among the rank's.
    std::size_t number;
    std::vector<std::uint64_t> parameters;
    std::uint32_t blocks;
    std::uint32_t block_threads;
    bool is_dependent;

    std::vector<std::unique_ptr<Block>> running;
    std::uint32_t started = 0;
    std::uint32_t launched_dependents = 0;
    std::uint32_t ended = 0;
    // The words of stores that wait, in no order.
    std::vector<Address> pending;
    std::size_t outstanding = 0;
    bool is_complete = false;
    std::vector<Thread*> dependents;
};

struct Rank {
    std::vector<std::unique_ptr<Grid>> stream;
    std::uint32_t resident_blocks = 0;
    std::uint32_t resident_threads = 0;
    // Grids before this one have started all their blocks.
    std::size_t next = 0;
    std::vector<Thread*> fencing;
};

// How a seed makes ranks, warps and stores early or late.
struct Habits {
    explicit Habits(Random& random);

    // One store is delivered for so many turns of threads; 0: only when no thread can run.
    std::uint32_t turns_per_delivery;
    // So many ready threads are drawn, and the one of the highest priority runs.
    std::uint32_t contenders;
    // One turn in so many is not taken: the thread is held back instead, until so many turns of others have passed, or
    // none can go on without it.
    std::uint32_t turns_per_hold;
    std::uint32_t turns_per_release;
    // One load in so many is old, if it can be.
    std::uint32_t loads_per_stale;
    // A thread goes on after all but one in so many accesses.
    std::uint32_t accesses_per_yield;
    // A block that could start does so after so many turns.
    std::uint32_t turns_per_start;
    // A rank whose stores are later than the others'.
    std::uint32_t late_rank;
};

// What became of a run.
enum class Outcome : std::uint32_t { complete, hang, misuse };

class Machine {
public:
    struct Limits {
        // Per rank.
        std::uint32_t resident_blocks;
        std::uint32_t resident_threads;
        // By which the clock moves on when all wait for words; 0: it stands still.
        std::uint64_t tick;
    };

    Machine(std::uint32_t ranks, std::uint64_t seed, Limits limits);

    void launch(std::unique_ptr<Grid> grid);
    Outcome run();
    const std::string& message() const { return message_; }
    std::uint64_t turns() const { return turns_; }
    Memory& memory() { return memory_; }

    // ---- Called by the thread that runs -----------------------------------------------------------------------------
    const Thread& current() const { return *current_; }
    std::uint32_t load(Address address, bool is_system);
    void store(Address address, std::uint32_t word, bool sets_bits, bool is_system);
    std::uint32_t increment(Address address, std::uint32_t last);
    void sleep();
    void poll(Address address, std::uint32_t word);
    void read(Address address, void* to, std::uint32_t bytes);
    void write(Address address, const void* from, std::uint32_t bytes);
    void fence();
    void barrier(std::uint32_t number, std::uint32_t threads, bool waits);
    std::uint64_t warp_operation(WarpOperation operation, std::uint64_t value, std::uint32_t source_lane);
    void wait_for_prior_grid();
    void launch_dependents();
    std::uint64_t nanoseconds() const { return nanoseconds_; }
    // The first function of a fiber.
    [[noreturn]] void run_thread();

private:
    // Blocks and grids: grids.cpp.
    bool may_start(const Rank& rank) const;
    bool start_block(Rank& rank);
    void end_thread(Thread& thread);
    void end_block(Block& block);
    void complete(Grid& grid);

    // The scheduler: scheduler.cpp.
    bool take_turn();
    Thread* draw();
    void run(Thread& thread);
    void place_shared(Block& block);
    bool deliver_one();
    bool pass_time();
    bool release_one();
    void make_ready(Thread& thread);
    void wait(State state, std::uint64_t awaited);
    void yield();
    void yield_sometimes();
    [[noreturn]] void fail(Outcome outcome, std::string message);
    std::string describe_hang();

    Random random_;
    Habits habits_;
    Limits limits_;
    Memory memory_;
    std::vector<Rank> ranks_;
    Stacks stacks_;
    Context scheduler_;
    Thread* current_ = nullptr;
    std::vector<Block*> ready_;
    std::vector<Thread*> held_;
    // Grids with stores that wait.
    std::vector<Grid*> storing_;
    // Threads that wait for a word to change, by its address.
    std::unordered_map<Address, std::vector<Thread*>> polling_;
    // By where a kernel's shared variables are: whose they are at present.
    std::unordered_map<char*, Block*> placed_;
    std::uint64_t blocks_ = 0;
    std::uint64_t threads_ = 0;
    std::uint64_t nanoseconds_ = 1;
    std::uint64_t turns_ = 0;
    std::size_t incomplete_ = 0;
    // Turns, and times that all waited for words, since anything else happened.
    std::uint64_t idle_turns_ = 0;
    std::uint64_t idle_times_ = 0;
    Outcome outcome_ = Outcome::complete;
    std::string message_;
    bool has_failed_ = false;
};

}  // namespace emulator
