// The machine's functions for kernels, and for the tests, which are written in Rust.
#include <cstring>

#include "emulator.h"
#include "machine.hpp"

namespace emulator {

// The machine that runs on this thread of the operating system.
thread_local Machine* machine = nullptr;

}  // namespace emulator

using emulator::machine;
using emulator::Machine;

extern "C" {

// ---- For kernels ----------------------------------------------------------------------------------------------------

unsigned emulator_thread_index() { return machine->current().index; }
unsigned emulator_block_index() { return machine->current().block->index; }
unsigned emulator_block_threads() { return machine->current().block->grid->block_threads; }
unsigned emulator_grid_blocks() { return machine->current().block->grid->blocks; }

unsigned emulator_load(unsigned long long address, EmulatorScope scope) {
    return machine->load(address, scope == EMULATOR_SYSTEM);
}

void emulator_store(unsigned long long address, unsigned word, EmulatorScope scope) {
    machine->store(address, word, false, scope == EMULATOR_SYSTEM);
}

void emulator_set_bits(unsigned long long address, unsigned bits, EmulatorScope scope) {
    machine->store(address, bits, true, scope == EMULATOR_SYSTEM);
}

unsigned emulator_increment(unsigned long long address, unsigned last, EmulatorScope) {
    return machine->increment(address, last);
}

void emulator_poll(unsigned long long address, unsigned word) { machine->poll(address, word); }
void emulator_read(unsigned long long address, void* to, unsigned bytes) { machine->read(address, to, bytes); }

void emulator_write(unsigned long long address, const void* from, unsigned bytes) {
    machine->write(address, from, bytes);
}

void emulator_fence() { machine->fence(); }

void emulator_barrier(unsigned barrier, unsigned threads, bool waits) { machine->barrier(barrier, threads, waits); }

unsigned long long emulator_shuffle(unsigned long long value, unsigned source_lane) {
    return machine->warp_operation(emulator::WarpOperation::shuffle, value, source_lane);
}

unsigned emulator_or_of_warp(unsigned value) {
    return static_cast<unsigned>(machine->warp_operation(emulator::WarpOperation::bitwise_or, value, 0));
}

void emulator_sync_warp() { machine->warp_operation(emulator::WarpOperation::synchronise, 0, 0); }
void emulator_wait_for_prior_grid() { machine->wait_for_prior_grid(); }
void emulator_launch_dependents() { machine->launch_dependents(); }
unsigned long long emulator_nanoseconds() { return machine->nanoseconds(); }
void emulator_sleep() { machine->sleep(); }

// ---- For the tests --------------------------------------------------------------------------------------------------

// As in machine.rs.
struct EmulatorLaunch {
    const char* name;
    void (*enter)(const void*);
    char* shared_begin;
    char* shared_end;
    const void* parameters;
    std::uint64_t parameter_bytes;
    std::uint32_t rank;
    std::uint32_t blocks;
    std::uint32_t block_threads;
    std::uint32_t is_dependent;
};

Machine* emulator_create(std::uint32_t ranks, std::uint64_t seed, std::uint32_t resident_blocks,
                         std::uint32_t resident_threads, std::uint64_t tick) {
    return new Machine(ranks, seed, Machine::Limits{resident_blocks, resident_threads, tick});
}

void emulator_destroy(Machine* created) { delete created; }

void emulator_add_memory(Machine* created, std::uint64_t begin, std::uint64_t bytes, std::uint32_t kind,
                         std::uint32_t rank, const char* name) {
    created->memory().add(begin, bytes, static_cast<emulator::Kind>(kind), rank, name);
}

void emulator_launch(Machine* created, const EmulatorLaunch* launch) {
    auto grid = std::make_unique<emulator::Grid>();
    grid->name = launch->name;
    grid->kernel = emulator::Kernel{launch->enter, launch->shared_begin, launch->shared_end};
    grid->rank = launch->rank;
    grid->parameters.resize((launch->parameter_bytes + 7) / 8 + 1);
    std::memcpy(grid->parameters.data(), launch->parameters, launch->parameter_bytes);
    grid->blocks = launch->blocks;
    grid->block_threads = launch->block_threads;
    grid->is_dependent = launch->is_dependent != 0;
    created->launch(std::move(grid));
}

// Runs what was launched, and returns the outcome.
std::uint32_t emulator_run(Machine* created) {
    machine = created;
    const emulator::Outcome outcome = created->run();
    machine = nullptr;
    return static_cast<std::uint32_t>(outcome);
}

// How often a thread was chosen to run.
std::uint64_t emulator_turns(const Machine* created) { return created->turns(); }

// What went wrong. Valid until the machine is destroyed.
const char* emulator_message(const Machine* created) { return created->message().c_str(); }

}
