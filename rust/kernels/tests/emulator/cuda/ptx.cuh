// The functions of kernels/device/ptx.cuh, for the machine. If a kernel does not compile because one is missing here, it is
// new there: say here what it does to the machine.
#pragma once

#include "constants.cuh"
#include "device/e4m3.cuh"
#include "device/types.cuh"
#include "device/vector.cuh"

namespace lamport::ptx {

// ---- Slots: relaxed, system scope -----------------------------------------------------------------------------------

inline void store_system(Address address, uint32 word) { emulator_store(address, word, EMULATOR_SYSTEM); }

inline void store_system(Address address, const Vector& vector) {
    for (uint32 i = 0; i < VECTOR_WORDS; ++i) {
        emulator_store(address + i * sizeof(uint32), vector.words[i], EMULATOR_SYSTEM);
    }
}

inline uint32 load_system(Address address) {
    const uint32 word = emulator_load(address, EMULATOR_SYSTEM);
    if (word == SENTINEL) {
        emulator_poll(address, SENTINEL);
    }
    return word;
}

inline Vector load_system_vector(Address address) {
    Vector vector;
    Address missing = 0;
    for (uint32 i = 0; i < VECTOR_WORDS; ++i) {
        const Address at = address + i * sizeof(uint32);
        vector.words[i] = emulator_load(at, EMULATOR_SYSTEM);
        missing = vector.words[i] == SENTINEL ? at : missing;
    }
    if (missing != 0) {
        emulator_poll(missing, SENTINEL);
    }
    return vector;
}

inline void load_system_if(bool condition, Address address, Vector& vector) {
    if (condition) {
        vector = load_system_vector(address);
    }
}

inline uint32 load_system_if(bool condition, Address address) {
    return condition ? emulator_load(address, EMULATOR_SYSTEM) : 0;
}

inline void fence_system() { emulator_fence(); }

inline void set_bits_system(Address address, uint32 bits) { emulator_set_bits(address, bits, EMULATOR_SYSTEM); }

// ---- Control words: relaxed, device scope ---------------------------------------------------------------------------

inline uint32 load_device(Address address) { return emulator_load(address, EMULATOR_DEVICE); }

inline void load_device(Address address, uint32& first, uint32& second, uint32& third) {
    first = load_device(address);
    second = load_device(address + sizeof(uint32));
    third = load_device(address + 2 * sizeof(uint32));
}

inline void store_device(Address address, uint32 word) { emulator_store(address, word, EMULATOR_DEVICE); }

inline void store_device(Address address, uint32 first, uint32 second) {
    store_device(address, first);
    store_device(address + sizeof(uint32), second);
}

inline void store_device(Address address, const Vector& vector) {
    for (uint32 i = 0; i < VECTOR_WORDS; ++i) {
        store_device(address + i * sizeof(uint32), vector.words[i]);
    }
}

inline void store_device_long(Address address, uint64 value) {
    store_device(address, static_cast<uint32>(value), static_cast<uint32>(value >> 32));
}

inline uint64 load_device_long(Address address) {
    const uint64 low = load_device(address);
    return low | uint64{load_device(address + sizeof(uint32))} << 32;
}

inline uint32 count_device(Address address, uint32 last) { return emulator_increment(address, last, EMULATOR_DEVICE); }

// ---- Inputs, weights, outputs: weak ---------------------------------------------------------------------------------

inline Vector load_input(Address address) {
    Vector vector;
    emulator_read(address, &vector, sizeof(vector));
    return vector;
}

inline void load_input_if(bool condition, Address address, Vector& vector) {
    if (condition) {
        vector = load_input(address);
    }
}

inline uint32 load_input_half(Address address, bool condition = true, uint32 otherwise = 0) {
    if (!condition) {
        return otherwise;
    }
    unsigned short half;
    emulator_read(address, &half, sizeof(half));
    return half;
}

inline Vector load_weight(Address address) { return load_input(address); }

inline void store_output(Address address, const Vector& vector) { emulator_write(address, &vector, sizeof(vector)); }

inline void store_output_if(bool condition, Address address, const Vector& vector) {
    if (condition) {
        store_output(address, vector);
    }
}

inline void store_output_half(Address address, uint32 word) {
    const unsigned short half = static_cast<unsigned short>(word);
    emulator_write(address, &half, sizeof(half));
}

inline void store_output_byte_if(bool condition, Address address, uint32 word) {
    const unsigned char byte = static_cast<unsigned char>(word);
    if (condition) {
        emulator_write(address, &byte, sizeof(byte));
    }
}

inline void store_output_pair_if(bool condition, Address address, uint32 first, uint32 second) {
    const uint32 words[2] = {first, second};
    if (condition) {
        emulator_write(address, words, sizeof(words));
    }
}

inline void store_output_word_if(bool condition, Address address, uint32 word) {
    if (condition) {
        emulator_write(address, &word, sizeof(word));
    }
}

inline uint32 load_weight_word(Address address, bool condition = true, uint32 otherwise = 0) {
    if (!condition) {
        return otherwise;
    }
    uint32 word;
    emulator_read(address, &word, sizeof(word));
    return word;
}

// ---- Barriers, launches, time ---------------------------------------------------------------------------------------

inline void arrive_at_barrier(uint32 barrier, uint32 threads) { emulator_barrier(barrier, threads, false); }
inline void wait_at_barrier(uint32 barrier, uint32 threads) { emulator_barrier(barrier, threads, true); }
inline void wait_for_prior_grids() { emulator_wait_for_prior_grid(); }
inline void launch_dependents() { emulator_launch_dependents(); }
inline uint64 nanoseconds() { return emulator_nanoseconds(); }
inline void sleep_a_millisecond() { emulator_sleep(); }

// ---- Conversions, two 16-bit values a word, the first in the low half -----------------------------------------------
// To nearest even; any NaN becomes 0x7fff.

inline uint32 to_bfloat16(float value) {
    const uint32 word = __float_as_uint(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fff;
    }
    return (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

inline uint32 to_float16(float value) {
    const uint32 word = __float_as_uint(value);
    const uint32 sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7fff;
    }
    if (magnitude >= 0x477ff000u) {
        // 65520 and more round to infinity.
        return sign | 0x7c00u;
    }
    if (magnitude < 0x38800000u) {
        // Below 2^-14: in units of 2^-24, which the addition rounds to.
        const float shifted = __uint_as_float(magnitude) + 0.5f;
        return sign | (__float_as_uint(shifted) - __float_as_uint(0.5f));
    }
    return sign | ((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline float from_float16(uint32 half) {
    const uint32 sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * (1.0f / (1 << 24));
        return __uint_as_float(sign | __float_as_uint(magnitude));
    }
    const uint32 wide = exponent == 31 ? 255 : exponent + 112;
    return __uint_as_float(sign | wide << 23 | fraction << 13);
}

inline uint32 pack_bfloat16(float low, float high) { return to_bfloat16(high) << 16 | to_bfloat16(low); }
inline uint32 pack_float16(float low, float high) { return to_float16(high) << 16 | to_float16(low); }

inline void unpack_float16(uint32 word, float& low, float& high) {
    low = from_float16(word & 0xffffu);
    high = from_float16(word >> 16);
}

inline float larger_or_nan(float a, float b) { return a != a || a > b ? a : b; }

// Wrong in the last place, one way or the other: nothing may depend on more than the hardware promises.
inline float reciprocal_approximate(float value) {
    const float result = 1.0f / value;
    const uint32 magnitude = __float_as_uint(result) & 0x7fffffffu;
    if (magnitude < 0x00800000u) {
        return 0.0f * result;
    }
    if (magnitude <= 0x00800001u || magnitude >= 0x7f7ffffeu) {
        return result;
    }
    return __uint_as_float(__float_as_uint(result) + (__float_as_uint(value) >> 16 & 1u ? 1u : ~0u));
}

inline uint32 larger_halves(uint32 a, uint32 b) {
    return max(a & 0xffffu, b & 0xffffu) | max(a >> 16, b >> 16) << 16;
}

inline uint32 pack_e4m3(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }

}  // namespace lamport::ptx
