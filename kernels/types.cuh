// The integer types of the protocol. No CUDA header is included anywhere: compiling needs NVRTC and nothing else.
#pragma once

namespace lamport {

using uint32 = unsigned int;
using uint64 = unsigned long long;

// A device address, as the host passes it. Slots are never dereferenced as C++ objects: see ptx.cuh.
using Address = uint64;

static_assert(sizeof(uint32) == 4 && sizeof(uint64) == 8, "the protocol's words are 32 bits, its addresses 64");

}  // namespace lamport

// NVRTC has no offsetof.
#define FIELD_OFFSET(type, field) (reinterpret_cast<lamport::uint64>(&static_cast<type*>(nullptr)->field))
