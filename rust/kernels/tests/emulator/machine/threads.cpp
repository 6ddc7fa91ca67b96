// What the thread that runs does to memory, and to the other threads of its warp and block.
#include <cstring>

#include "machine.hpp"

namespace emulator {

std::uint32_t Machine::load(Address address, bool is_system) {
    yield_sometimes();
    Thread& thread = *current_;
    if (!memory_.check_relaxed(thread.accessor, address, is_system)) {
        fail(Outcome::misuse, memory_.error());
    }
    const std::uint32_t word = memory_.load(thread.accessor, address, random_.once_in(habits_.loads_per_stale));
    const bool polls = thread.last_address == address && thread.last_word == word;
    thread.last_address = address;
    thread.last_word = word;
    if (polls) {
        poll(address, word);
    }
    return word;
}

void Machine::poll(Address address, std::uint32_t word) {
    // A load that missed the last store looks again.
    if (memory_.word(address) != word) {
        yield();
        return;
    }
    memory_.poll(address);
    polling_[address].push_back(current_);
    wait(State::word, address);
}

// Among those that poll, of a word that is never stored: it goes on when time has passed as often as others poll.
void Machine::sleep() {
    // Of 0.5 us each, and 64 times fewer, as between looks at the clock: see compile.rs.
    constexpr std::uint32_t POLLS_PER_MILLISECOND = 2048 / 64;
    for (std::uint32_t poll = 0; poll < POLLS_PER_MILLISECOND; ++poll) {
        polling_[0].push_back(current_);
        wait(State::word, 0);
    }
}

void Machine::store(Address address, std::uint32_t word, bool sets_bits, bool is_system) {
    Thread& thread = *current_;
    if (!memory_.check_relaxed(thread.accessor, address, is_system)) {
        fail(Outcome::misuse, memory_.error());
    }
    Block& block = *thread.block;
    Grid& grid = *block.grid;
    grid.outstanding += 1;
    memory_.store(address, Store{word, sets_bits, grid.rank, block.id, thread.accessor.thread, ++block.stores,
                                 &grid.outstanding});
    if (grid.pending.empty()) {
        storing_.push_back(&grid);
    }
    grid.pending.push_back(address);
    idle_turns_ = idle_times_ = 0;
    yield_sometimes();
}

std::uint32_t Machine::increment(Address address, std::uint32_t last) {
    yield_sometimes();
    if (!memory_.check_relaxed(current_->accessor, address, false)) {
        fail(Outcome::misuse, memory_.error());
    }
    idle_turns_ = idle_times_ = 0;
    return memory_.increment(current_->accessor, address, last);
}

void Machine::read(Address address, void* to, std::uint32_t bytes) {
    if (!memory_.check_weak(current_->accessor, address, bytes, false)) {
        fail(Outcome::misuse, memory_.error());
    }
    std::memcpy(to, reinterpret_cast<const void*>(address), bytes);
    yield_sometimes();
}

void Machine::write(Address address, const void* from, std::uint32_t bytes) {
    if (!memory_.check_weak(current_->accessor, address, bytes, true)) {
        fail(Outcome::misuse, memory_.error());
    }
    std::memcpy(reinterpret_cast<void*>(address), from, bytes);
    yield_sometimes();
}

void Machine::fence() {
    while (memory_.has_prior_store(current_->accessor)) {
        ranks_[current_->accessor.rank].fencing.push_back(current_);
        wait(State::fence, 0);
    }
    current_->accessor.floor = memory_.time();
}

void Machine::barrier(std::uint32_t number, std::uint32_t threads, bool waits) {
    Block& block = *current_->block;
    const std::string where = block.grid->name + ", block " + std::to_string(block.index) + ", barrier " +
                              std::to_string(number);
    if (number >= BARRIERS || threads == 0 || threads % WARP_THREADS != 0 || threads > block.threads.size()) {
        fail(Outcome::misuse, where + ": no such barrier, or not of " + std::to_string(threads) + " threads");
    }
    Barrier& barrier = block.barriers[number];
    if (barrier.expected != 0 && barrier.expected != threads) {
        fail(Outcome::misuse, where + ": threads that arrive expect different numbers of threads");
    }
    barrier.expected = threads;
    barrier.arrived += 1;
    if (barrier.arrived < barrier.expected) {
        if (waits) {
            barrier.waiting.push_back(current_);
            wait(State::barrier, number);
        } else {
            yield_sometimes();
        }
        return;
    }
    idle_turns_ = idle_times_ = 0;
    for (Thread* thread : barrier.waiting) {
        thread->accessor.watermark = block.stores;
        make_ready(*thread);
    }
    if (waits) {
        current_->accessor.watermark = block.stores;
    }
    barrier.expected = barrier.arrived = 0;
    barrier.waiting.clear();
    yield_sometimes();
}

std::uint64_t Machine::warp_operation(WarpOperation operation, std::uint64_t value, std::uint32_t source_lane) {
    Block& block = *current_->block;
    const std::uint32_t index = current_->index / WARP_THREADS, lane = current_->index % WARP_THREADS;
    Warp& warp = block.warps[index];
    if (warp.operation != WarpOperation::none && warp.operation != operation) {
        fail(Outcome::misuse, block.grid->name + ": lanes of one warp are at different warp-wide operations");
    }
    warp.operation = operation;
    warp.values[lane] = value;
    warp.sources[lane] = source_lane;
    warp.arrived += 1;
    if (warp.arrived < WARP_THREADS) {
        wait(State::warp, index);
        return current_->result;
    }
    warp.operation = WarpOperation::none;
    warp.arrived = 0;
    std::uint64_t all = 0;
    for (const std::uint64_t of_lane : warp.values) {
        all |= of_lane;
    }
    for (std::uint32_t other = 0; other < WARP_THREADS; ++other) {
        Thread& thread = block.threads[index * WARP_THREADS + other];
        thread.result = operation == WarpOperation::shuffle ? warp.values[warp.sources[other]] : all;
        if (operation == WarpOperation::synchronise) {
            thread.accessor.watermark = block.stores;
        }
        if (&thread != current_) {
            make_ready(thread);
        }
    }
    idle_turns_ = idle_times_ = 0;
    return current_->result;
}

}  // namespace emulator
