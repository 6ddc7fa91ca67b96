// Runs a grid on one thread of the operating system, and is what its kernel asks for (emulator.h): every CUDA thread is
// a fiber, which runs until it waits. Accesses act at once, and are real atomics: other grids run on other threads, and
// in other processes.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.hpp"
#include "emulator.h"
#include "fiber.hpp"

namespace standin {

namespace {

constexpr unsigned WARP_THREADS = 32;
constexpr unsigned BARRIERS = 16;
// Fewer than on any device.
constexpr unsigned POLLS_PER_MILLISECOND = 1000;
// Rounds in which all threads wait for memory, until the grid no longer only yields its core, but sleeps.
constexpr unsigned YIELDS = 20;
constexpr unsigned SLEEP_MICROSECONDS = 50;

enum class State : unsigned char { ready, waits, ended };

struct Block;

struct Thread {
    emulator::Context context;
    std::unique_ptr<emulator::Stack> stack;
    Block* block = nullptr;
    unsigned index = 0;
    State state = State::ready;
    // It gave up its turn since a word was still the same.
    bool polls = false;
    // What it loaded last, and from where: who loads the same again polls.
    Address last_address = 0;
    unsigned last_word = 0;
    // Of a warp-wide operation.
    std::uint64_t result = 0;
};

struct Barrier {
    unsigned arrived = 0;
    std::vector<Thread*> waiting;
};

struct Warp {
    unsigned arrived = 0;
    std::array<std::uint64_t, WARP_THREADS> values;
    std::array<unsigned, WARP_THREADS> sources;
};

struct Block {
    const Grid* grid;
    unsigned index;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::array<Barrier, BARRIERS> barriers;
    // Shared variables, while another block runs.
    std::vector<char> shared;
    unsigned ended = 0;
};

// Of a stream's thread.
thread_local Thread* current = nullptr;
thread_local emulator::Context scheduler;
thread_local emulator::Stacks stacks;

[[noreturn]] void give_up(const char* why) {
    std::fprintf(stderr, "the stand-in for the CUDA driver: %s, block %u, thread %u: %s\n",
                 current->block->grid->name.c_str(), current->block->index, current->index, why);
    std::abort();
}

void leave() { emulator::switch_context(current->context, scheduler); }

void yield() {
    current->polls = true;
    leave();
}

void wait() {
    current->state = State::waits;
    leave();
}

void run_thread() {
    const Grid& grid = *current->block->grid;
    grid.kernel.enter(grid.parameters.data());
    current->state = State::ended;
    leave();
    __builtin_unreachable();
}

std::unique_ptr<Block> start(const Grid& grid, unsigned index) {
    auto block = std::make_unique<Block>();
    block->grid = &grid;
    block->index = index;
    block->warps.resize(grid.block_threads / WARP_THREADS);
    block->shared.assign(static_cast<std::size_t>(grid.kernel.shared_end - grid.kernel.shared_begin), '\xa5');
    block->threads.resize(grid.block_threads);
    for (unsigned at = 0; at < grid.block_threads; ++at) {
        Thread& thread = block->threads[at];
        thread.stack = stacks.take();
        thread.block = block.get();
        thread.index = at;
        thread.stack->prepare(thread.context, run_thread);
    }
    return block;
}

// Lets every thread of the block that can go on have its turn. Returns whether any did more than look at memory.
bool take_turns(Block& block) {
    bool has_progressed = false;
    for (Thread& thread : block.threads) {
        if (thread.state != State::ready) {
            continue;
        }
        thread.polls = false;
        current = &thread;
        emulator::switch_context(scheduler, thread.context);
        has_progressed |= !thread.polls;
        if (thread.state == State::ended) {
            if (!thread.stack->is_whole()) {
                give_up("it needs more stack than there is: see Stack::BYTES");
            }
            stacks.put_back(std::move(thread.stack));
            block.ended += 1;
        }
    }
    return has_progressed;
}

// Threads that wait at a barrier, or for their warp, when nobody can release them.
void check_not_stuck(const Block& block) {
    for (const Thread& thread : block.threads) {
        if (thread.state == State::ready) {
            return;
        }
    }
    current = const_cast<Thread*>(&block.threads[0]);
    give_up("all threads of the block wait for each other, or have ended");
}

std::uint64_t warp_operation(std::uint64_t value, unsigned source_lane, bool is_shuffle) {
    Thread& thread = *current;
    Block& block = *thread.block;
    const unsigned first = thread.index / WARP_THREADS * WARP_THREADS;
    Warp& warp = block.warps[thread.index / WARP_THREADS];
    warp.values[thread.index - first] = value;
    warp.sources[thread.index - first] = source_lane;
    if (++warp.arrived < WARP_THREADS) {
        wait();
        return thread.result;
    }
    warp.arrived = 0;
    std::uint64_t all = 0;
    for (const std::uint64_t of_lane : warp.values) {
        all |= of_lane;
    }
    for (unsigned lane = 0; lane < WARP_THREADS; ++lane) {
        Thread& other = block.threads[first + lane];
        other.result = is_shuffle ? warp.values[warp.sources[lane]] : all;
        other.state = State::ready;
    }
    return thread.result;
}

unsigned* word_at(unsigned long long address) { return reinterpret_cast<unsigned*>(address); }

}  // namespace

void run(const Grid& grid) {
    if (grid.block_threads % WARP_THREADS != 0) {
        std::abort();
    }
    char* const shared = grid.kernel.shared_begin;
    std::vector<std::unique_ptr<Block>> running;
    unsigned started = 0, idle_rounds = 0;
    while (started < grid.blocks || !running.empty()) {
        // One more block a round: its threads may find stacks of threads that have ended.
        if (started < grid.blocks) {
            running.push_back(start(grid, started++));
        }
        bool has_progressed = started < grid.blocks;
        for (auto& block : running) {
            std::copy(block->shared.begin(), block->shared.end(), shared);
            const bool progressed = take_turns(*block);
            std::copy(shared, shared + block->shared.size(), block->shared.begin());
            has_progressed |= progressed;
            if (!progressed && block->ended < grid.block_threads) {
                check_not_stuck(*block);
            }
        }
        std::erase_if(running, [&](const auto& block) { return block->ended == grid.block_threads; });
        if (has_progressed) {
            idle_rounds = 0;
        } else if (++idle_rounds <= YIELDS) {
            sched_yield();
        } else {
            usleep(SLEEP_MICROSECONDS);
        }
    }
    current = nullptr;
}

}  // namespace standin

using namespace standin;

STANDIN_EXPORT unsigned emulator_thread_index() { return current->index; }
STANDIN_EXPORT unsigned emulator_block_index() { return current->block->index; }
STANDIN_EXPORT unsigned emulator_block_threads() { return current->block->grid->block_threads; }
STANDIN_EXPORT unsigned emulator_grid_blocks() { return current->block->grid->blocks; }

STANDIN_EXPORT unsigned emulator_load(unsigned long long address, EmulatorScope) {
    const unsigned word = __atomic_load_n(word_at(address), __ATOMIC_RELAXED);
    if (current->last_address == address && current->last_word == word) {
        yield();
    }
    current->last_address = address;
    current->last_word = word;
    return word;
}

STANDIN_EXPORT void emulator_store(unsigned long long address, unsigned word, EmulatorScope) {
    __atomic_store_n(word_at(address), word, __ATOMIC_RELAXED);
}

STANDIN_EXPORT void emulator_set_bits(unsigned long long address, unsigned bits, EmulatorScope) {
    __atomic_fetch_or(word_at(address), bits, __ATOMIC_RELAXED);
}

STANDIN_EXPORT unsigned emulator_increment(unsigned long long address, unsigned last, EmulatorScope) {
    unsigned before = __atomic_load_n(word_at(address), __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word_at(address), &before, before >= last ? 0 : before + 1, true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return before;
}

STANDIN_EXPORT void emulator_poll(unsigned long long, unsigned) { yield(); }

STANDIN_EXPORT void emulator_read(unsigned long long address, void* to, unsigned bytes) {
    std::memcpy(to, word_at(address), bytes);
}

STANDIN_EXPORT void emulator_write(unsigned long long address, const void* from, unsigned bytes) {
    std::memcpy(word_at(address), from, bytes);
}

STANDIN_EXPORT void emulator_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

STANDIN_EXPORT void emulator_barrier(unsigned number, unsigned threads, bool waits) {
    if (number >= BARRIERS) {
        give_up("no such barrier");
    }
    Barrier& barrier = current->block->barriers[number];
    if (++barrier.arrived < threads) {
        if (waits) {
            barrier.waiting.push_back(current);
            wait();
        }
        return;
    }
    barrier.arrived = 0;
    for (Thread* thread : barrier.waiting) {
        thread->state = State::ready;
    }
    barrier.waiting.clear();
}

STANDIN_EXPORT unsigned long long emulator_shuffle(unsigned long long value, unsigned source_lane) {
    return warp_operation(value, source_lane, true);
}

STANDIN_EXPORT unsigned emulator_or_of_warp(unsigned value) {
    return static_cast<unsigned>(warp_operation(value, 0, false));
}

STANDIN_EXPORT void emulator_sync_warp() { warp_operation(0, 0, false); }

// Grids of a stream run one after the other.
STANDIN_EXPORT void emulator_wait_for_prior_grid() {}
STANDIN_EXPORT void emulator_launch_dependents() {}

STANDIN_EXPORT unsigned long long emulator_nanoseconds() { return nanoseconds(); }

// Kernels count on it that threads that wait poll often within a millisecond. Here that takes as long as it takes.
STANDIN_EXPORT void emulator_sleep() {
    for (unsigned poll = 0; poll < POLLS_PER_MILLISECOND; ++poll) {
        leave();
    }
}
