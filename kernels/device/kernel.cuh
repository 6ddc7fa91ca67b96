// How a `.cu` file makes a kernel of a composition.
#pragma once

// Defines the kernel `name`, which takes a struct of parameters and passes it to a function template with its
// arguments. The host chooses the bounds of the launch, and with them the registers of a thread.
#define LAMPORT_KERNEL(name, Parameters, ...)                                                 \
    extern "C" __global__ void __launch_bounds__(LAMPORT_MAX_THREADS, LAMPORT_MIN_BLOCKS)      \
        name(const __grid_constant__ lamport::Parameters parameters) {                         \
        using namespace lamport;                                                               \
        __VA_ARGS__(parameters);                                                               \
    }
