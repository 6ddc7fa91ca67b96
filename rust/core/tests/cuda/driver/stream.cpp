// Streams and events. A stream is a queue with a thread that works it off: kernels of different streams, and of
// different devices, run at the same time and may wait for each other.
//
// The default stream orders nothing but itself, as if all others were made with CU_STREAM_NON_BLOCKING.
#include <algorithm>
#include <map>
#include <thread>

#include "driver.hpp"

namespace standin {

namespace {

struct Event {
    struct Progress {
        std::mutex mutex;
        std::condition_variable changed;
        // Counts the records; and those that their streams have come to.
        std::uint64_t recorded = 0;
        std::uint64_t reached = 0;
    };

    std::shared_ptr<Progress> progress = std::make_shared<Progress>();
    bool is_alive = true;
    const void* const context;
    // In which it was recorded last, if in any.
    std::shared_ptr<Capture> capture;

    explicit Event(const void* context) : context(context) {}
};

struct Streams {
    std::mutex mutex;
    std::vector<Stream*> all;
    // By context.
    std::map<const void*, Stream*> defaults;
};

Streams& streams() {
    static Streams& streams = *new Streams;
    return streams;
}

}  // namespace

void Stream::enqueue(Work work) {
    const std::lock_guard lock(mutex_);
    if (capture != nullptr) {
        capture->work.push_back(std::move(work));
        return;
    }
    queue_.push_back(std::move(work));
    enqueued_ += 1;
    changed_.notify_all();
    if (!has_worker_) {
        has_worker_ = true;
        std::thread([this] { this->work(); }).detach();
    }
}

void Stream::work() {
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return !queue_.empty(); });
        Work work = std::move(queue_.front());
        queue_.pop_front();
        lock.unlock();
        work();
        lock.lock();
        completed_ += 1;
        changed_.notify_all();
    }
}

void Stream::synchronise() {
    std::unique_lock lock(mutex_);
    const std::uint64_t until = enqueued_;
    changed_.wait(lock, [&] { return completed_ >= until; });
}

Stream* find_stream(Stream* handle) {
    const int device = current_device();
    Streams& streams = standin::streams();
    const std::lock_guard lock(streams.mutex);
    // The default stream, the legacy one, the thread's.
    if (reinterpret_cast<std::uintptr_t>(handle) <= 2) {
        Stream*& stream = streams.defaults[current_context()];
        if (stream == nullptr) {
            stream = new Stream(device);
            streams.all.push_back(stream);
        }
        return stream;
    }
    return handle->device == device && handle->is_alive ? handle : nullptr;
}

std::vector<Stream*> all_streams() {
    const std::lock_guard lock(streams().mutex);
    return streams().all;
}

void synchronise_device(int device) {
    for (Stream* stream : all_streams()) {
        if (stream->device == device) {
            stream->synchronise();
        }
    }
}

}  // namespace standin

using namespace standin;

STANDIN_EXPORT Result cuStreamCreate(Stream** stream, unsigned) {
    STANDIN_ENTER_CONTEXT("cuStreamCreate")
    *stream = new Stream(device);
    count(Kind::stream, 1);
    const std::lock_guard lock(streams().mutex);
    streams().all.push_back(*stream);
    return SUCCESS;
}

// What it has to do is done all the same.
STANDIN_EXPORT Result cuStreamDestroy_v2(Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuStreamDestroy")
    Stream* stream = find_stream(handle);
    if (stream == nullptr || stream != handle) {
        violate("cuStreamDestroy of what is no stream of the device");
        return INVALID_HANDLE;
    }
    stream->is_alive = false;
    count(Kind::stream, -1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuStreamSynchronize(Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuStreamSynchronize")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    if (stream->capture != nullptr) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    stream->synchronise();
    return SUCCESS;
}

STANDIN_EXPORT Result cuEventCreate(Event** event, unsigned) {
    STANDIN_ENTER_CONTEXT("cuEventCreate")
    *event = new Event(current_context());
    count(Kind::event, 1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuEventDestroy_v2(Event* event) {
    STANDIN_ENTER_CONTEXT("cuEventDestroy")
    if (!event->is_alive) {
        violate("an event is destroyed twice");
        return INVALID_HANDLE;
    }
    event->is_alive = false;
    count(Kind::event, -1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuEventRecord(Event* event, Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuEventRecord")
    Stream* stream = find_stream(handle);
    if (stream == nullptr || !event->is_alive || event->context != current_context()) {
        return INVALID_HANDLE;
    }
    event->capture = stream->capture;
    if (stream->capture != nullptr) {
        return SUCCESS;
    }
    const auto progress = event->progress;
    const std::lock_guard lock(progress->mutex);
    stream->enqueue([progress, number = ++progress->recorded] {
        const std::lock_guard lock(progress->mutex);
        progress->reached = std::max(progress->reached, number);
        progress->changed.notify_all();
    });
    return SUCCESS;
}

STANDIN_EXPORT Result cuEventSynchronize(Event* event) {
    STANDIN_ENTER_CONTEXT("cuEventSynchronize")
    if (!event->is_alive || event->capture != nullptr) {
        return INVALID_HANDLE;
    }
    const auto progress = event->progress;
    std::unique_lock lock(progress->mutex);
    progress->changed.wait(lock, [&] { return progress->reached == progress->recorded; });
    return SUCCESS;
}

STANDIN_EXPORT Result cuStreamWaitEvent(Stream* handle, Event* event, unsigned) {
    STANDIN_ENTER_CONTEXT("cuStreamWaitEvent")
    Stream* stream = find_stream(handle);
    if (stream == nullptr || !event->is_alive) {
        return INVALID_HANDLE;
    }
    if (event->capture != nullptr) {
        // The stream becomes part of the capture.
        stream->capture = event->capture;
        return SUCCESS;
    }
    if (stream->capture != nullptr) {
        return STREAM_CAPTURE_ISOLATION;
    }
    const auto progress = event->progress;
    const std::lock_guard lock(progress->mutex);
    stream->enqueue([progress, number = progress->recorded] {
        std::unique_lock lock(progress->mutex);
        progress->changed.wait(lock, [&] { return progress->reached >= number; });
    });
    return SUCCESS;
}
