#include "fiber.hpp"

namespace emulator {

namespace {

// At the far end of a stack; a frame that gets there overwrites it.
constexpr std::uint64_t CANARY = 0x6c616d706f727421;
constexpr std::size_t CANARY_WORDS = 4;
constexpr std::size_t STACK_WORDS = Stack::BYTES / sizeof(std::uint64_t);

}  // namespace

#if EMULATOR_HAS_OWN_SWITCH

// Pushes the registers that a function must keep, swaps stacks, and pops those of the other. Not `swapcontext`: that is
// a system call each time, for the signal mask.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, . - emulator_switch
)");

constexpr std::size_t KEPT_REGISTERS = 6;

void switch_context(Context& from, Context& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }

void Stack::prepare(Context& context, void (*function)()) {
    // As if `function` had been called: its return address, which it does not use, lies at a multiple of 16 less 8.
    std::uint64_t* top = words_.get() + STACK_WORDS;
    top -= reinterpret_cast<std::uintptr_t>(top) % 16 / sizeof(std::uint64_t);
    *--top = 0;
    *--top = reinterpret_cast<std::uintptr_t>(function);
    for (std::size_t i = 0; i < KEPT_REGISTERS; ++i) {
        *--top = 0;
    }
    context.stack_pointer = top;
}

#else

void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

void Stack::prepare(Context& context, void (*function)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = words_.get() + CANARY_WORDS;
    context.context.uc_stack.ss_size = BYTES - CANARY_WORDS * sizeof(std::uint64_t);
    context.context.uc_link = nullptr;
    makecontext(&context.context, function, 0);
}

#endif

Stack::Stack() : words_(new std::uint64_t[STACK_WORDS]) {
    for (std::size_t i = 0; i < CANARY_WORDS; ++i) {
        words_[i] = CANARY;
    }
}

bool Stack::is_whole() const {
    for (std::size_t i = 0; i < CANARY_WORDS; ++i) {
        if (words_[i] != CANARY) {
            return false;
        }
    }
    return true;
}

std::unique_ptr<Stack> Stacks::take() {
    if (free_.empty()) {
        return std::make_unique<Stack>();
    }
    std::unique_ptr<Stack> stack = std::move(free_.back());
    free_.pop_back();
    return stack;
}

void Stacks::put_back(std::unique_ptr<Stack> stack) { free_.push_back(std::move(stack)); }

}  // namespace emulator
