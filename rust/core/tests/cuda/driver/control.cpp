// What tests tell the stand-in, and ask of it: the functions that standin/mod.rs declares.
#include <atomic>
#include <ctime>
#include <map>

#include "driver.hpp"

namespace standin {

namespace {

constexpr int ANY_RANK = -1;

// The call that is to fail.
struct Fault {
    int rank = ANY_RANK;
    // Empty for any. Several, separated by commas, fail once each.
    std::string function;
    // How many such calls come before it.
    std::uint64_t skipped = 0;
    Result code = SUCCESS;
    bool is_armed = false;
    // What it was.
    std::string hit;
};

struct State {
    std::mutex mutex;
    Fault fault;
    std::map<std::string, std::uint64_t> calls;
    std::string violations;
    std::string answer;
};

// Not destroyed, as all that is global here: workers may outlive `main`.
State& state() {
    static State& state = *new State;
    return state;
}

std::atomic<long> live[static_cast<unsigned>(Kind::COUNT)];
std::atomic<const char* (*)(const char*, std::size_t)> resolver{nullptr};

// The devices' time is real time by a factor, and then some, modulo 2^64.
struct Clock {
    std::uint64_t factor = 1;
    std::uint64_t offset = 0;

    std::uint64_t at(std::uint64_t real) const { return real * factor + offset; }
};

// Replaced as a whole, since kernels look at it all the time.
std::atomic<const Clock*> device_clock{new Clock};

std::uint64_t real_nanoseconds() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// Whose thread this is.
thread_local int rank = ANY_RANK;

std::size_t find_name(const std::string& names, const std::string& name) {
    return ("," + names + ",").find("," + name + ",");
}

bool has_name(const std::string& names, const std::string& name) { return find_name(names, name) != std::string::npos; }

void remove_name(std::string& names, const std::string& name) {
    if (const std::size_t at = find_name(names, name); at != std::string::npos) {
        names.erase(at, name.size() + 1);
    }
    while (!names.empty() && names.back() == ',') {
        names.pop_back();
    }
}

}  // namespace

Result enter(const char* function) {
    State& state = standin::state();
    const std::lock_guard lock(state.mutex);
    state.calls[function] += 1;
    Fault& fault = state.fault;
    const bool is_meant = fault.is_armed && (fault.rank == ANY_RANK || fault.rank == rank) &&
                          (fault.function.empty() || has_name(fault.function, function));
    if (!is_meant || fault.skipped-- > 0) {
        return SUCCESS;
    }
    fault.skipped = 0;
    remove_name(fault.function, function);
    fault.is_armed = !fault.function.empty();
    fault.hit = function;
    return fault.code;
}

void count(Kind kind, long change) { live[static_cast<unsigned>(kind)] += change; }

void violate(const std::string& what) {
    State& state = standin::state();
    const std::lock_guard lock(state.mutex);
    state.violations += what + "\n";
}

const char* resolve(const char* image, std::size_t size) {
    const auto function = resolver.load();
    return function == nullptr ? nullptr : function(image, size);
}

std::uint64_t nanoseconds() { return device_clock.load(std::memory_order_acquire)->at(real_nanoseconds()); }

}  // namespace standin

using namespace standin;

// Says how the object file of an image is found.
STANDIN_EXPORT void standin_resolve_with(const char* (*resolve)(const char*, std::size_t)) { resolver = resolve; }

// The calling thread works for this rank.
STANDIN_EXPORT void standin_act_as(int of_rank) { rank = of_rank; }

// Lets a call of `rank`'s threads (-1: of anybody) to `function` (null: to any) fail, after `skipped` such calls.
STANDIN_EXPORT void standin_fail(int of_rank, const char* function, std::uint64_t skipped, int code) {
    const std::lock_guard lock(state().mutex);
    state().fault = Fault{of_rank, function == nullptr ? "" : function, skipped, static_cast<Result>(code), true, ""};
}

// Lets no call fail any more. Returns the function whose call failed, or an empty text. Valid until the next call here.
STANDIN_EXPORT const char* standin_disarm() {
    const std::lock_guard lock(state().mutex);
    state().answer = state().fault.hit;
    state().fault = Fault{};
    return state().answer.c_str();
}

STANDIN_EXPORT long standin_live(unsigned kind) { return live[kind]; }

STANDIN_EXPORT std::uint64_t standin_calls(const char* function) {
    const std::lock_guard lock(state().mutex);
    return state().calls[function];
}

// What was done that must not be, a line each, and forgets it. Valid until the next call here.
STANDIN_EXPORT const char* standin_violations() {
    const std::lock_guard lock(state().mutex);
    state().answer = std::move(state().violations);
    state().violations.clear();
    return state().answer.c_str();
}

// Lets the devices' clock go on so many times as fast as real time.
STANDIN_EXPORT void standin_speed_up_clock(std::uint64_t factor) {
    const std::lock_guard lock(state().mutex);
    const std::uint64_t real = real_nanoseconds();
    device_clock = new Clock{factor, device_clock.load()->at(real) - real * factor};
}
