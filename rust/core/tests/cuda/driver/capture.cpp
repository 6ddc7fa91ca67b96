// Captures, and the graphs that come of them. A graph is the work of a capture, in the order of the calls.
#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "driver.hpp"

namespace standin {

namespace {

// CUstreamCaptureMode.
enum Mode : int { GLOBAL, THREAD_LOCAL, RELAXED };

thread_local Mode mode = GLOBAL;

struct Ongoing {
    std::shared_ptr<Capture> capture;
    Stream* origin;
    Mode mode;
    std::thread::id thread;
};

struct Captures {
    std::mutex mutex;
    std::vector<Ongoing> ongoing;
    std::uint64_t begun = 0;
};

Captures& captures() {
    static Captures& captures = *new Captures;
    return captures;
}

// A capture's work, and what was instantiated from it.
using Graph = Capture;

}  // namespace

bool is_forbidden_by_capture() {
    const std::lock_guard lock(captures().mutex);
    const auto forbids = [](const Ongoing& one) {
        const bool is_own = one.thread == std::this_thread::get_id();
        return (is_own && one.mode != RELAXED) || (mode == GLOBAL && one.mode == GLOBAL);
    };
    const std::vector<Ongoing>& ongoing = captures().ongoing;
    return mode != RELAXED && std::any_of(ongoing.begin(), ongoing.end(), forbids);
}

}  // namespace standin

using namespace standin;

STANDIN_EXPORT Result cuThreadExchangeStreamCaptureMode(int* exchanged) {
    STANDIN_ENTER("cuThreadExchangeStreamCaptureMode")
    *exchanged = std::exchange(mode, static_cast<Mode>(*exchanged));
    return SUCCESS;
}

// The outputs that nobody asks for are not there.
STANDIN_EXPORT Result cuStreamGetCaptureInfo_v2(Stream* handle, int* status, std::uint64_t* number, void*, void*, void*) {
    STANDIN_ENTER_CONTEXT("cuStreamGetCaptureInfo")
    const Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    *status = stream->capture == nullptr ? 0 : 1;
    *number = stream->capture == nullptr ? 0 : stream->capture->number;
    return SUCCESS;
}

STANDIN_EXPORT Result cuStreamBeginCapture_v2(Stream* handle, int with_mode) {
    STANDIN_ENTER_CONTEXT("cuStreamBeginCapture")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    // Not of the default stream.
    if (stream != handle || stream->capture != nullptr) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    Captures& captures = standin::captures();
    const std::lock_guard lock(captures.mutex);
    stream->capture = std::make_shared<Capture>(Capture{++captures.begun, {}, false});
    captures.ongoing.push_back({stream->capture, stream, static_cast<Mode>(with_mode), std::this_thread::get_id()});
    return SUCCESS;
}

// That all streams of the capture have been joined again is not checked.
STANDIN_EXPORT Result cuStreamEndCapture(Stream* stream, Graph** graph) {
    STANDIN_ENTER_CONTEXT("cuStreamEndCapture")
    Captures& captures = standin::captures();
    const std::lock_guard lock(captures.mutex);
    const auto found = std::find_if(captures.ongoing.begin(), captures.ongoing.end(),
                                    [&](const Ongoing& one) { return one.origin == stream; });
    if (found == captures.ongoing.end()) {
        return INVALID_VALUE;
    }
    const bool is_invalidated = found->capture->is_invalidated;
    *graph = is_invalidated ? nullptr : new Graph(std::move(*found->capture));
    for (Stream* other : all_streams()) {
        if (other->device == device && other->capture == found->capture) {
            other->capture = nullptr;
        }
    }
    captures.ongoing.erase(found);
    return is_invalidated ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}

STANDIN_EXPORT Result cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    STANDIN_ENTER_CONTEXT("cuGraphInstantiate")
    *executable = new Graph(*graph);
    return SUCCESS;
}

STANDIN_EXPORT Result cuGraphLaunch(Graph* executable, Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuGraphLaunch")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    for (const Work& work : executable->work) {
        stream->enqueue(work);
    }
    return SUCCESS;
}

STANDIN_EXPORT Result cuGraphDestroy(Graph* graph) {
    STANDIN_ENTER("cuGraphDestroy")
    delete graph;
    return SUCCESS;
}

STANDIN_EXPORT Result cuGraphExecDestroy(Graph* executable) {
    STANDIN_ENTER("cuGraphExecDestroy")
    delete executable;
    return SUCCESS;
}
