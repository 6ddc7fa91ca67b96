// Who runs next, and what is delivered next.
#include <algorithm>

#include "machine.hpp"

namespace emulator {

namespace {

// Times that all threads wait for words with nothing on its way, until that is called a hang. Where the clock moves,
// waiting threads must get to see it.
constexpr std::uint64_t IDLE_TIMES = 4;
constexpr std::uint64_t IDLE_TIMES_WITH_CLOCK = 200'000;
// Turns, likewise, of threads that only load.
constexpr std::uint64_t IDLE_TURNS = 20'000'000;
// A thread runs so often until its warp's priority is drawn again, and its block's.
constexpr std::uint32_t TURNS_PER_WARP_PRIORITY = 512;
constexpr std::uint32_t TURNS_PER_BLOCK_PRIORITY = 2048;

std::uint32_t one_of(Random& random, std::initializer_list<std::uint32_t> choices) {
    return choices.begin()[random.below(choices.size())];
}

}  // namespace

Habits::Habits(Random& random)
    : turns_per_delivery(one_of(random, {1, 4, 32, 256, 0})),
      contenders(one_of(random, {1, 2, 4, 8})),
      turns_per_hold(one_of(random, {0, 16, 128, 1024})),
      turns_per_release(one_of(random, {64, 1024, 16384})),
      loads_per_stale(one_of(random, {0, 2, 8})),
      accesses_per_yield(one_of(random, {4, 16, 128})),
      turns_per_start(one_of(random, {1, 64, 1024})),
      late_rank(random.below(16)) {}

Machine::Machine(std::uint32_t ranks, std::uint64_t seed, Limits limits)
    : random_(seed), habits_(random_), limits_(limits), ranks_(ranks) {}

Outcome Machine::run() {
    while (!has_failed_ && incomplete_ > 0 && take_turn()) {
    }
    return outcome_;
}

// Returns false after a failure.
bool Machine::take_turn() {
    // No more than one block a turn: which rank's, is drawn.
    if (ready_.empty() || random_.once_in(habits_.turns_per_start)) {
        const std::uint32_t first = random_.below(ranks_.size());
        for (std::uint32_t i = 0; i < ranks_.size(); ++i) {
            Rank& rank = ranks_[(first + i) % ranks_.size()];
            if (may_start(rank)) {
                return start_block(rank);
            }
        }
    }
    if (ready_.empty() || random_.once_in(habits_.turns_per_delivery)) {
        if (deliver_one()) {
            return true;
        }
    }
    if (!held_.empty() && random_.once_in(habits_.turns_per_release)) {
        release_one();
    }
    if (Thread* thread = draw()) {
        if (random_.once_in(habits_.turns_per_hold)) {
            held_.push_back(thread);
            return true;
        }
        run(*thread);
        turns_ += 1;
        idle_turns_ += 1;
        if (idle_turns_ < IDLE_TURNS) {
            return !has_failed_;
        }
    } else if (release_one() || pass_time()) {
        return true;
    }
    outcome_ = Outcome::hang;
    message_ = describe_hang();
    has_failed_ = true;
    return false;
}

// Draws some of the ready threads, and takes the one of the highest priority out of its block's list.
Thread* Machine::draw() {
    if (ready_.empty()) {
        return nullptr;
    }
    Block* best = nullptr;
    std::uint32_t best_index = 0;
    std::uint64_t best_priority = 0;
    for (std::uint32_t i = 0; i < habits_.contenders; ++i) {
        Block* block = ready_[random_.below(ready_.size())];
        const std::uint32_t index = random_.below(block->ready.size());
        const Warp& warp = block->warps[block->ready[index]->index / WARP_THREADS];
        const std::uint64_t priority = std::uint64_t{block->priority} + warp.priority;
        if (best == nullptr || priority > best_priority) {
            best = block;
            best_index = index;
            best_priority = priority;
        }
    }
    Thread* thread = best->ready[best_index];
    best->ready[best_index] = best->ready.back();
    best->ready.pop_back();
    if (best->ready.empty()) {
        *std::find(ready_.begin(), ready_.end(), best) = ready_.back();
        ready_.pop_back();
    }
    return thread;
}

void Machine::run(Thread& thread) {
    Block& block = *thread.block;
    if (random_.once_in(TURNS_PER_WARP_PRIORITY)) {
        block.warps[thread.index / WARP_THREADS].priority = static_cast<std::uint32_t>(random_.next());
    }
    if (random_.once_in(TURNS_PER_BLOCK_PRIORITY)) {
        block.priority = static_cast<std::uint32_t>(random_.next());
    }
    place_shared(block);
    current_ = &thread;
    switch_context(scheduler_, thread.context);
    current_ = nullptr;
    if (block.ended == block.threads.size() && !has_failed_) {
        end_block(block);
    }
}

// Puts the block's shared variables where the kernel's code looks for them.
void Machine::place_shared(Block& block) {
    if (block.shared.empty()) {
        return;
    }
    char* const place = block.grid->kernel.shared_begin;
    Block*& placed = placed_[place];
    if (placed == &block) {
        return;
    }
    if (placed != nullptr) {
        std::copy(place, place + placed->shared.size(), placed->shared.begin());
    }
    std::copy(block.shared.begin(), block.shared.end(), place);
    placed = &block;
}

// Delivers one of the words that wait. False if there is none.
bool Machine::deliver_one() {
    if (storing_.empty()) {
        return false;
    }
    std::uint32_t index = random_.below(storing_.size());
    if (storing_[index]->rank == habits_.late_rank && !random_.once_in(8)) {
        index = random_.below(storing_.size());
    }
    Grid& grid = *storing_[index];
    std::vector<Address>& pending = grid.pending;
    const std::uint32_t word = random_.below(pending.size());
    const Address address = pending[word];
    pending[word] = pending.back();
    pending.pop_back();
    if (pending.empty()) {
        storing_[index] = storing_.back();
        storing_.pop_back();
    }
    idle_turns_ = idle_times_ = 0;
    if (memory_.deliver(grid.rank, address)) {
        if (const auto found = polling_.find(address); found != polling_.end()) {
            for (Thread* thread : found->second) {
                make_ready(*thread);
            }
            polling_.erase(found);
        }
    }
    Rank& rank = ranks_[grid.rank];
    for (Thread* thread : rank.fencing) {
        make_ready(*thread);
    }
    rank.fencing.clear();
    complete(grid);
    return true;
}

// Lets a thread go on that was held back. False if there is none.
bool Machine::release_one() {
    if (held_.empty()) {
        return false;
    }
    Thread*& drawn = held_[random_.below(held_.size())];
    make_ready(*drawn);
    drawn = held_.back();
    held_.pop_back();
    return true;
}

// Nobody can run, and nothing is on its way: those who poll look again, later. False if that has gone on for too long.
bool Machine::pass_time() {
    idle_times_ += 1;
    if (polling_.empty() || idle_times_ > (limits_.tick == 0 ? IDLE_TIMES : IDLE_TIMES_WITH_CLOCK)) {
        return false;
    }
    nanoseconds_ += limits_.tick;
    if (limits_.tick != 0) {
        memory_.settle();
    }
    // In an order that does not depend on where memory lies.
    std::vector<Thread*> threads;
    for (auto& [address, waiting] : polling_) {
        threads.insert(threads.end(), waiting.begin(), waiting.end());
    }
    polling_.clear();
    std::sort(threads.begin(), threads.end(),
              [](const Thread* a, const Thread* b) { return a->accessor.thread < b->accessor.thread; });
    for (Thread* thread : threads) {
        make_ready(*thread);
    }
    return true;
}

void Machine::make_ready(Thread& thread) {
    thread.state = State::nothing;
    Block& block = *thread.block;
    if (block.ready.empty()) {
        ready_.push_back(&block);
    }
    block.ready.push_back(&thread);
}

void Machine::wait(State state, std::uint64_t awaited) {
    current_->state = state;
    current_->awaited = awaited;
    switch_context(current_->context, scheduler_);
}

void Machine::yield() {
    make_ready(*current_);
    switch_context(current_->context, scheduler_);
}

void Machine::yield_sometimes() {
    if (random_.once_in(habits_.accesses_per_yield)) {
        yield();
    }
}

void Machine::fail(Outcome outcome, std::string message) {
    const Block& block = *current_->block;
    outcome_ = outcome;
    message_ = "rank " + std::to_string(block.grid->rank) + ", grid " + std::to_string(block.grid->number) + " (" +
               block.grid->name + "), block " + std::to_string(block.index) + ", thread " +
               std::to_string(current_->index) + ": " + message;
    has_failed_ = true;
    switch_context(current_->context, scheduler_);
    __builtin_unreachable();
}

std::string Machine::describe_hang() {
    std::string text = "no thread can go on:";
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
        for (const auto& grid : ranks_[rank].stream) {
            if (grid->is_complete || grid->running.empty()) {
                continue;
            }
            text += "\n  rank " + std::to_string(rank) + ", grid " + std::to_string(grid->number) + " (" + grid->name +
                    "), " + std::to_string(grid->started) + " of " + std::to_string(grid->blocks) + " blocks started:";
            std::array<std::uint32_t, 6> waiting{};
            Address word = 0;
            for (const auto& block : grid->running) {
                for (const Thread& thread : block->threads) {
                    waiting[static_cast<std::size_t>(thread.state)] += 1;
                    word = thread.state == State::word && word == 0 ? thread.awaited : word;
                }
            }
            constexpr const char* STATES[] = {"ended or ready", "wait for a word",     "wait at a barrier",
                                              "wait for their warp", "wait for the grid before", "wait for stores"};
            for (std::size_t state = 0; state < waiting.size(); ++state) {
                if (waiting[state] != 0) {
                    text += " " + std::to_string(waiting[state]) + " " + STATES[state] + ",";
                }
            }
            if (word != 0) {
                text += " such as " + memory_.name(word);
            }
        }
    }
    return text;
}

}  // namespace emulator
