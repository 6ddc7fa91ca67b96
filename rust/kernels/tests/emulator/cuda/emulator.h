// What a kernel asks of the machine that it runs on: the functions of machine/, which kernels call by way of cuda.h and
// ptx.cuh. All of them act for the CUDA thread that is running.
#pragma once

extern "C" {

// Where the thread is.
unsigned emulator_thread_index() __attribute__((const));
unsigned emulator_block_index() __attribute__((const));
unsigned emulator_block_threads() __attribute__((const));
unsigned emulator_grid_blocks() __attribute__((const));

// Relaxed accesses to a 32-bit word: visible to this device, or to the whole system.
enum EmulatorScope { EMULATOR_DEVICE, EMULATOR_SYSTEM };
unsigned emulator_load(unsigned long long address, EmulatorScope scope);
void emulator_store(unsigned long long address, unsigned word, EmulatorScope scope);
void emulator_set_bits(unsigned long long address, unsigned bits, EmulatorScope scope);
unsigned emulator_increment(unsigned long long address, unsigned last, EmulatorScope scope);

// Says that the thread polls: it saw `word` at `address`, and waits for another.
void emulator_poll(unsigned long long address, unsigned word);

// Weak accesses to tensors.
void emulator_read(unsigned long long address, void* to, unsigned bytes);
void emulator_write(unsigned long long address, const void* from, unsigned bytes);

// Orders the accesses before it, and what they saw, ahead of those after it, for the whole system.
void emulator_fence();

// Arrives at a barrier of the block, and waits for the others if `waits`.
void emulator_barrier(unsigned barrier, unsigned threads, bool waits);

// Warp-wide operations of all 32 lanes.
unsigned long long emulator_shuffle(unsigned long long value, unsigned source_lane);
unsigned emulator_or_of_warp(unsigned value);
void emulator_sync_warp();

// Programmatic dependent launch.
void emulator_wait_for_prior_grid();
void emulator_launch_dependents();

unsigned long long emulator_nanoseconds();

// Waits as long as a millisecond's polls take.
void emulator_sleep();

}
