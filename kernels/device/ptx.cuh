// What C++ cannot say. Every `asm` of the project is in this file and in ptx_values.cuh.
//
// `volatile` with a "memory" clobber keeps the compiler from moving an access across the accesses and barriers around
// it; what the hardware may reorder is said at each function.
#pragma once

#include "device/ptx_values.cuh"
#include "device/types.cuh"
#include "device/vector.cuh"

namespace lamport::ptx {

// ---- Slots: relaxed, system scope -----------------------------------------------------------------------------------
// The only accesses to slots, to the verification's cells and to words that the host reads. Each 32-bit word is
// indivisible and coherent between GPUs and the host; a vector is four such words in no order. Nothing else is ordered:
// the data is its own flag. Weak accesses would be a data race.

__device__ __forceinline__ void store_system(Address address, uint32 word) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(address), "r"(word) : "memory");
}

__device__ __forceinline__ void store_system(Address address, const Vector& vector) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(vector.words[0]),
                 "r"(vector.words[1]), "r"(vector.words[2]), "r"(vector.words[3])
                 : "memory");
}

__device__ __forceinline__ uint32 load_system(Address address) {
    uint32 word;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
    return word;
}

__device__ __forceinline__ Vector load_system_vector(Address address) {
    Vector vector;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(vector.words[0]), "=r"(vector.words[1]), "=r"(vector.words[2]), "=r"(vector.words[3])
                 : "l"(address)
                 : "memory");
    return vector;
}

// Loads if `condition`; otherwise `vector` stays as it is. A predicate and no branch.
__device__ __forceinline__ void load_system_if(bool condition, Address address, Vector& vector) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %5, 0;\n"
                 " @p ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(vector.words[0]), "+r"(vector.words[1]), "+r"(vector.words[2]), "+r"(vector.words[3])
                 : "l"(address), "r"(static_cast<uint32>(condition))
                 : "memory");
}

// Loads if `condition`; otherwise 0. A predicate and no branch.
__device__ __forceinline__ uint32 load_system_if(bool condition, Address address) {
    uint32 word = 0;
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p ld.relaxed.sys.global.u32 %0, [%1];}"
                 : "+r"(word)
                 : "l"(address), "r"(static_cast<uint32>(condition))
                 : "memory");
    return word;
}

// Sets bits of a word that other blocks set bits of at the same time.
__device__ __forceinline__ void set_bits_system(Address address, uint32 bits) {
    asm volatile("red.relaxed.sys.global.or.b32 [%0], %1;" ::"l"(address), "r"(bits) : "memory");
}

// Orders what this thread stored before ahead of what it stores after, for the host too. For reports of faults only.
__device__ __forceinline__ void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// ---- Control words: relaxed, device scope ---------------------------------------------------------------------------
// Read by every block and written by the last to arrive, within one kernel, so neither may be a weak access. From one
// kernel to the next, the grid-dependency wait orders them.

__device__ __forceinline__ uint32 load_device(Address address) {
    uint32 word;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
    return word;
}

// Three of four words at once, at a multiple of 16.
__device__ __forceinline__ void load_device(Address address, uint32& first, uint32& second, uint32& third) {
    asm volatile("{.reg .u32 fourth;\n"
                 " ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, fourth}, [%3];}"
                 : "=r"(first), "=r"(second), "=r"(third)
                 : "l"(address)
                 : "memory");
}

// Two words at once, at a multiple of 8.
__device__ __forceinline__ void store_device(Address address, uint32 first, uint32 second) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(first), "r"(second) : "memory");
}

__device__ __forceinline__ void store_device(Address address, uint32 word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(word) : "memory");
}

// Four words at once, at a multiple of 16.
__device__ __forceinline__ void store_device(Address address, const Vector& vector) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(vector.words[0]),
                 "r"(vector.words[1]), "r"(vector.words[2]), "r"(vector.words[3])
                 : "memory");
}

__device__ __forceinline__ void store_device_long(Address address, uint64 value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

__device__ __forceinline__ uint64 load_device_long(Address address) {
    uint64 value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
    return value;
}

// Adds 1, or sets the word to 0 if it is `last`. Returns the value before.
__device__ __forceinline__ uint32 count_device(Address address, uint32 last) {
    uint32 before;
    asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(address), "r"(last)
                 : "memory");
    return before;
}

// ---- Inputs, weights, outputs: weak ---------------------------------------------------------------------------------
// Never `.nc`: with programmatic dependent launch the kernel before may write an input while this one already runs.

// A vector that is read once, so that it is not worth a line of the first-level cache.
__device__ __forceinline__ Vector load_input(Address address) {
    Vector vector;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(vector.words[0]), "=r"(vector.words[1]), "=r"(vector.words[2]), "=r"(vector.words[3])
                 : "l"(address)
                 : "memory");
    return vector;
}

// Likewise if `condition`; otherwise `vector` stays as it is. A predicate and no branch.
__device__ __forceinline__ void load_input_if(bool condition, Address address, Vector& vector) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %5, 0;\n"
                 " @p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(vector.words[0]), "+r"(vector.words[1]), "+r"(vector.words[2]), "+r"(vector.words[3])
                 : "l"(address), "r"(static_cast<uint32>(condition))
                 : "memory");
}

// 16 bits of an input, in the low half, if `condition`; else `otherwise`.
__device__ __forceinline__ uint32 load_input_half(Address address, bool condition = true, uint32 otherwise = 0) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p ld.global.u16 %0, [%1];}"
                 : "+r"(otherwise)
                 : "l"(address), "r"(static_cast<uint32>(condition))
                 : "memory");
    return otherwise;
}

// A vector that other blocks on the same multiprocessor read too.
__device__ __forceinline__ Vector load_weight(Address address) {
    Vector vector;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(vector.words[0]), "=r"(vector.words[1]), "=r"(vector.words[2]), "=r"(vector.words[3])
                 : "l"(address)
                 : "memory");
    return vector;
}

__device__ __forceinline__ void store_output(Address address, const Vector& vector) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(vector.words[0]),
                 "r"(vector.words[1]), "r"(vector.words[2]), "r"(vector.words[3])
                 : "memory");
}

// Stores if `condition`. A predicate and no branch.
__device__ __forceinline__ void store_output_if(bool condition, Address address, const Vector& vector) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %5, 0;\n"
                 " @p st.global.v4.u32 [%0], {%1, %2, %3, %4};}" ::"l"(address),
                 "r"(vector.words[0]), "r"(vector.words[1]), "r"(vector.words[2]), "r"(vector.words[3]),
                 "r"(static_cast<uint32>(condition))
                 : "memory");
}

// The low half of `word`.
__device__ __forceinline__ void store_output_half(Address address, uint32 word) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(address), "h"(static_cast<unsigned short>(word)) : "memory");
}

// The low byte of `word`, if `condition`.
__device__ __forceinline__ void store_output_byte_if(bool condition, Address address, uint32 word) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p st.global.u8 [%0], %1;}" ::"l"(address),
                 "r"(word), "r"(static_cast<uint32>(condition)) : "memory");
}

// The next three: 8 bytes at a multiple of 8, and 4 at a multiple of 4.
__device__ __forceinline__ void store_output_pair_if(bool condition, Address address, uint32 first, uint32 second) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %3, 0;\n @p st.global.v2.u32 [%0], {%1, %2};}" ::"l"(address),
                 "r"(first), "r"(second), "r"(static_cast<uint32>(condition)) : "memory");
}

__device__ __forceinline__ void store_output_word_if(bool condition, Address address, uint32 word) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p st.global.u32 [%0], %1;}" ::"l"(address),
                 "r"(word), "r"(static_cast<uint32>(condition)) : "memory");
}

// Loads if `condition`; else `otherwise`.
__device__ __forceinline__ uint32 load_weight_word(Address address, bool condition = true, uint32 otherwise = 0) {
    asm volatile("{.reg .pred p;\n setp.ne.u32 p, %2, 0;\n @p ld.global.u32 %0, [%1];}"
                 : "+r"(otherwise)
                 : "l"(address), "r"(static_cast<uint32>(condition))
                 : "memory");
    return otherwise;
}

// ---- Barriers of a block --------------------------------------------------------------------------------------------
// Of `threads` threads, some of which only arrive and go on. What they read before is read before the others go on.

__device__ __forceinline__ void arrive_at_barrier(uint32 barrier, uint32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void wait_at_barrier(uint32 barrier, uint32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- Programmatic dependent launch ----------------------------------------------------------------------------------
// Both do nothing where the hardware lacks it (before compute capability 9.0) or the launch did not ask for it.

// Returns when every grid before this one in the stream is complete and its writes are visible here. Every kernel calls
// it on every path: the grid after this one relies on it for the grids before this one.
__device__ __forceinline__ void wait_for_prior_grids() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next grid start once all blocks of this one have called it or ended. Safe anywhere, because the next grid's
// wait lasts until this one is complete and flushed. After the first push is best: the next grid's blocks would delay
// it.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- Time -----------------------------------------------------------------------------------------------------------

// Nanoseconds, the same clock for every block of a device.
__device__ __forceinline__ uint64 nanoseconds() {
    uint64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
    return now;
}

__device__ __forceinline__ void sleep_a_millisecond() { asm volatile("nanosleep.u32 1000000;" ::: "memory"); }

}  // namespace lamport::ptx
