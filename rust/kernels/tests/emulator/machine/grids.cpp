// When blocks start and grids are complete.
#include "machine.hpp"

namespace emulator {

// A grid may start once the one before it is complete; with programmatic dependent launch already once all blocks of
// that one have launched dependents or ended. Blocks start in ascending order, as far as there is room.
bool Machine::may_start(const Rank& rank) const {
    if (rank.next == rank.stream.size()) {
        return false;
    }
    const Grid& grid = *rank.stream[rank.next];
    if (rank.next > 0) {
        const Grid& prior = *rank.stream[rank.next - 1];
        const bool is_released = grid.is_dependent && prior.launched_dependents == prior.blocks;
        if (!prior.is_complete && !is_released) {
            return false;
        }
    }
    return rank.resident_blocks < limits_.resident_blocks &&
           rank.resident_threads + grid.block_threads <= limits_.resident_threads;
}

bool Machine::start_block(Rank& rank) {
    Grid& grid = *rank.stream[rank.next];
    auto owned = std::make_unique<Block>();
    Block& block = *owned;
    grid.running.push_back(std::move(owned));
    block.grid = &grid;
    block.index = grid.started;
    block.id = ++blocks_;
    block.priority = static_cast<std::uint32_t>(random_.next());
    block.warps.resize(grid.block_threads / WARP_THREADS);
    for (Warp& warp : block.warps) {
        warp.priority = static_cast<std::uint32_t>(random_.next());
    }
    // Whatever lay there before.
    block.shared.resize(static_cast<std::size_t>(grid.kernel.shared_end - grid.kernel.shared_begin));
    for (char& byte : block.shared) {
        byte = static_cast<char>(random_.next());
    }
    block.threads.resize(grid.block_threads);
    block.ready.reserve(grid.block_threads);
    for (std::uint32_t index = 0; index < grid.block_threads; ++index) {
        Thread& thread = block.threads[index];
        thread.stack = stacks_.take();
        thread.block = &block;
        thread.index = index;
        thread.accessor.rank = grid.rank;
        thread.accessor.block = block.id;
        thread.accessor.thread = ++threads_;
        thread.stack->prepare(thread.context, [] {
            extern thread_local Machine* machine;
            machine->run_thread();
        });
        make_ready(thread);
    }
    rank.resident_blocks += 1;
    rank.resident_threads += grid.block_threads;
    grid.started += 1;
    if (grid.started == grid.blocks) {
        rank.next += 1;
    }
    return true;
}

void Machine::run_thread() {
    const Grid& grid = *current_->block->grid;
    grid.kernel.enter(grid.parameters.data());
    end_thread(*current_);
    switch_context(current_->context, scheduler_);
    __builtin_unreachable();
}

void Machine::end_thread(Thread& thread) {
    thread.block->ended += 1;
    idle_turns_ = idle_times_ = 0;
}

void Machine::end_block(Block& block) {
    Grid& grid = *block.grid;
    for (const Barrier& barrier : block.barriers) {
        if (barrier.expected != 0) {
            outcome_ = Outcome::misuse;
            message_ = grid.name + ": a block ended with threads arrived at a barrier that others never came to";
            has_failed_ = true;
        }
    }
    if (!block.has_launched_dependents) {
        grid.launched_dependents += 1;
    }
    for (Thread& thread : block.threads) {
        if (!thread.stack->is_whole()) {
            outcome_ = Outcome::misuse;
            message_ = grid.name + ": a thread needs more stack than the emulator gives it: see Stack::BYTES";
            has_failed_ = true;
        }
        stacks_.put_back(std::move(thread.stack));
    }
    Block*& placed = placed_[grid.kernel.shared_begin];
    placed = placed == &block ? nullptr : placed;
    Rank& rank = ranks_[grid.rank];
    rank.resident_blocks -= 1;
    rank.resident_threads -= grid.block_threads;
    grid.ended += 1;
    for (auto& owned : grid.running) {
        if (owned.get() == &block) {
            std::swap(owned, grid.running.back());
            grid.running.pop_back();
            break;
        }
    }
    complete(grid);
}

// Completes the grid if all its blocks have ended and its stores are delivered.
void Machine::complete(Grid& grid) {
    if (grid.is_complete || grid.ended != grid.blocks || grid.outstanding != 0) {
        return;
    }
    grid.is_complete = true;
    incomplete_ -= 1;
    for (Thread* thread : grid.dependents) {
        make_ready(*thread);
    }
    grid.dependents.clear();
}

void Machine::launch(std::unique_ptr<Grid> grid) {
    Rank& rank = ranks_[grid->rank];
    grid->number = rank.stream.size();
    rank.stream.push_back(std::move(grid));
    incomplete_ += 1;
}

void Machine::wait_for_prior_grid() {
    const Grid& grid = *current_->block->grid;
    if (grid.number > 0) {
        Grid& prior = *ranks_[grid.rank].stream[grid.number - 1];
        if (!prior.is_complete) {
            prior.dependents.push_back(current_);
            wait(State::prior_grid, 0);
        }
    }
    current_->accessor.has_waited = true;
    current_->accessor.floor = memory_.time();
    yield_sometimes();
}

void Machine::launch_dependents() {
    Block& block = *current_->block;
    if (!block.has_launched_dependents) {
        block.has_launched_dependents = true;
        block.grid->launched_dependents += 1;
    }
    yield_sometimes();
}

}  // namespace emulator
