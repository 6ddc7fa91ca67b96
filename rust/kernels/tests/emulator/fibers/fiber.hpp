// Fibers: functions with a stack of their own, of which one runs until it switches to another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// Elsewhere, and where it is asked for, the C library switches, which is slower.
#if defined(__x86_64__) && !defined(EMULATOR_USES_UCONTEXT)
#define EMULATOR_HAS_OWN_SWITCH 1
#else
#define EMULATOR_HAS_OWN_SWITCH 0
#endif

#if !EMULATOR_HAS_OWN_SWITCH
#include <ucontext.h>
#endif

namespace emulator {

// Where a fiber, or the scheduler, goes on when it is switched to.
struct Context {
#if EMULATOR_HAS_OWN_SWITCH
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

// Goes on at `to`, and leaves in `from` where to go on here.
void switch_context(Context& from, Context& to);

// The memory of a fiber's frames. Pages are touched when they are first used.
class Stack {
public:
    // Frames of a kernel take some 2 KiB, those of the machine below them less.
    static constexpr std::size_t BYTES = 24 << 10;

    Stack();

    // Makes a context that starts `function`, which never returns, on this stack.
    void prepare(Context& context, void (*function)());

    // Whether no frame has come near the end.
    bool is_whole() const;

private:
    std::unique_ptr<std::uint64_t[]> words_;
};

// Stacks, to be used again.
class Stacks {
public:
    std::unique_ptr<Stack> take();
    void put_back(std::unique_ptr<Stack> stack);

private:
    std::vector<std::unique_ptr<Stack>> free_;
};

}  // namespace emulator
