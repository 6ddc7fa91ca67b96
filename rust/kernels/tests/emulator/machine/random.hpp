// A small generator of random numbers: a run is repeated by its seed.
#pragma once

#include <cstdint>

namespace emulator {

class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    // SplitMix64.
    std::uint64_t next() {
        std::uint64_t mixed = state_ += 0x9e3779b97f4a7c15;
        mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
        mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
        return mixed ^ mixed >> 31;
    }

    std::uint32_t below(std::size_t end) { return static_cast<std::uint32_t>((next() >> 32) * end >> 32); }

    // True once in `times`; never if that is 0.
    bool once_in(std::uint32_t times) { return times != 0 && below(times) == 0; }

private:
    std::uint64_t state_;
};

}  // namespace emulator
