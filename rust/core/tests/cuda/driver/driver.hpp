// A stand-in for the CUDA driver: what its parts share. See docs/appendix/emulator.md.
//
// It exports the driver's functions, as far as the core calls them, and functions for tests (control.cpp). Its objects
// are what the handles of the API point to, and are never deleted: a stale handle is told from a live one.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define STANDIN_EXPORT extern "C" __attribute__((visibility("default")))

namespace standin {

using Address = std::uint64_t;

// CUresult, with the driver's numbers.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_ISOLATION = 905,
    UNKNOWN = 999,
};

// What lives until it is given back.
// `machine_code`: modules that were loaded as that, and are not given back. Neither are `kernel`: loads of kernels, each
// with an open file.
enum class Kind : unsigned { memory, mapping, pinned, module, event, stream, machine_code, kernel, COUNT };

using Work = std::function<void()>;

// What is recorded instead of run. One sequence for all streams of the capture: it is an order that they allow.
struct Capture {
    std::uint64_t number;
    std::vector<Work> work;
    bool is_invalidated = false;
};

// Work of one stream, in its order, on a thread of its own.
class Stream {
public:
    explicit Stream(int device) : device(device) {}

    // Records the work, if the stream captures.
    void enqueue(Work work);
    void synchronise();

    const int device;
    bool is_alive = true;
    // That it is part of, if any.
    std::shared_ptr<Capture> capture;

private:
    void work();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Work> queue_;
    std::uint64_t enqueued_ = 0;
    std::uint64_t completed_ = 0;
    bool has_worker_ = false;
};

// What every kernel but `fill` is told first: the beginning of `Group` in rust/kernels/src/parameters.rs.
struct Group {
    Address own;
    std::uint64_t comm_size;
    Address control_copies;
    unsigned rank;
    unsigned world_size;
    unsigned header[4];
    Address peers[15];
};

// A kernel's launch.
struct Grid {
    // One load of the kernel, for this grid alone while it runs.
    struct Kernel {
        void (*enter)(const void* parameters);
        char* shared_begin;
        char* shared_end;
        unsigned long long parameter_bytes;
    };

    std::string name;
    Kernel kernel;
    std::vector<std::uint64_t> parameters;
    unsigned blocks;
    unsigned block_threads;
};

// ---- control.cpp ----------------------------------------------------------------------------------------------------

// Called first by every function of the driver: an error if the test wants this call to fail.
Result enter(const char* function);
void count(Kind kind, long change);
// Notes what no program may do.
void violate(const std::string& what);
// The object file for a module's image; null if there is none.
const char* resolve(const char* image, std::size_t size);
// The clock of the devices, which tests may let run faster.
std::uint64_t nanoseconds();

// ---- device.cpp -----------------------------------------------------------------------------------------------------

// The device whose context the calling thread has; -1 for none.
int current_device();
const void* current_context();

// ---- stream.cpp -----------------------------------------------------------------------------------------------------

// The stream of a handle, null being the default one of the current context; null if it is not the device's.
Stream* find_stream(Stream* handle);
std::vector<Stream*> all_streams();
// Waits for all streams of the device.
void synchronise_device(int device);

// ---- capture.cpp ----------------------------------------------------------------------------------------------------

// Whether the calling thread may not make calls that a capture does not see, such as allocations.
bool is_forbidden_by_capture();

// ---- memory.cpp -----------------------------------------------------------------------------------------------------

// Notes if a kernel of the device is told of blocks that are not there: its own, or a peer's that is not mapped, or is
// another's too, or has another size.
void check_group(int device, const Group& group);

// ---- grid.cpp -------------------------------------------------------------------------------------------------------

// Runs the grid on the calling thread, until all its blocks have ended.
void run(const Grid& grid);

}  // namespace standin

// Ends the calling function of the driver if the test wants that, or if the thread has no context.
#define STANDIN_ENTER(name)                                          \
    if (const standin::Result refused = standin::enter(name)) {      \
        return refused;                                              \
    }
#define STANDIN_ENTER_CONTEXT(name)                                  \
    STANDIN_ENTER(name)                                              \
    const int device = standin::current_device();                    \
    if (device < 0) {                                                \
        return standin::INVALID_CONTEXT;                             \
    }
// Likewise of functions that a capture does not see.
#define STANDIN_ENTER_UNCAPTURED(name)                               \
    STANDIN_ENTER_CONTEXT(name)                                      \
    if (standin::is_forbidden_by_capture()) {                        \
        return standin::STREAM_CAPTURE_UNSUPPORTED;                  \
    }
