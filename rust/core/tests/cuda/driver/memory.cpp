// Device memory, its mappings in other contexts and processes, pinned memory, copies.
//
// Device memory is a file without a name, so that other processes can map it by way of /proc. Kernels and tests access
// it where it is mapped. What is freed becomes inaccessible, and its address is not used again: late accesses crash.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <map>
#include <set>
#include <string>

#include "driver.hpp"

namespace standin {

namespace {

// What memory holds before anything is stored.
constexpr int POISON = 0xa5;

// An allocation, or a mapping of one.
struct Block {
    Kind kind;
    int device;
    std::size_t bytes;
    // Names the allocation, in all processes.
    std::string name;
    // The allocation's file.
    int file = -1;
    // How often a mapping was opened.
    unsigned opened = 0;
};

struct Memory {
    std::mutex mutex;
    // By where they begin.
    std::map<Address, Block> blocks;
    std::uint64_t allocations = 0;
};

Memory& memory() {
    static Memory& memory = *new Memory;
    return memory;
}

std::atomic<std::uint64_t> frees_while_mapped{0};
std::atomic<bool> loses_stores{false};

// What CUipcMemHandle holds.
struct Handle {
    std::uint64_t magic;
    int process;
    int file;
    char name[40];
    std::uint64_t bytes;

    static constexpr std::uint64_t MAGIC = 0x6e69646e617473;
};
static_assert(sizeof(Handle) == 64);

Address map(int file, std::size_t bytes, int sharing = MAP_SHARED) {
    const int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : sharing;
    void* begin = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
    return begin == MAP_FAILED ? 0 : reinterpret_cast<Address>(begin);
}

void retire(Address begin, const Block& block) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    mmap(reinterpret_cast<void*>(begin), block.bytes, PROT_NONE, flags, -1, 0);
    if (block.file >= 0) {
        close(block.file);
    }
}

// The block that begins there, if it is one of the kind and the device's; else notes `misuse`.
Block* find(Address begin, Kind kind, int device, const char* misuse) {
    const auto found = memory().blocks.find(begin);
    if (found == memory().blocks.end() || found->second.kind != kind ||
        (kind != Kind::pinned && found->second.device != device)) {
        violate(misuse);
        return nullptr;
    }
    return &found->second;
}

// The file that a handle names; -1 if it names none. The process that allocated it says so by the file's name.
int open_file(const Handle& handle) {
    if (handle.magic != Handle::MAGIC || handle.name[sizeof(handle.name) - 1] != 0) {
        return -1;
    }
    const std::string path = "/proc/" + std::to_string(handle.process) + "/fd/" + std::to_string(handle.file);
    char target[128] = {};
    if (readlink(path.c_str(), target, sizeof(target) - 1) < 0 ||
        std::string(target) != "/memfd:" + std::string(handle.name) + " (deleted)") {
        return -1;
    }
    return open(path.c_str(), O_RDWR | O_CLOEXEC);
}

}  // namespace

void check_group(int device, const Group& group) {
    const std::lock_guard lock(memory().mutex);
    const Block* own = find(group.own, Kind::memory, device, "a kernel is told of a block that is not the device's");
    if (own == nullptr || group.world_size == 0 || group.world_size > std::size(group.peers) + 1) {
        violate("a kernel is told of no group");
        return;
    }
    std::set<std::string> names{own->name};
    for (unsigned peer = 0; peer + 1 < group.world_size; ++peer) {
        const Block* block =
            find(group.peers[peer], Kind::mapping, device, "a kernel is told of a peer's block that is not mapped");
        if (block == nullptr || block->bytes != own->bytes || !names.insert(block->name).second) {
            violate("a kernel is told of a peer's block that is another's, or has another size");
        }
    }
}

}  // namespace standin

using namespace standin;

// Frees of memory that another device of this process had mapped: the driver's manual calls that undefined.
STANDIN_EXPORT std::uint64_t standin_frees_while_mapped() { return frees_while_mapped; }

// From now on, stores into memory that is mapped do not arrive, although mapping it succeeds.
STANDIN_EXPORT void standin_lose_stores(bool loses) { loses_stores = loses; }

STANDIN_EXPORT Result cuMemAlloc_v2(Address* address, std::size_t bytes) {
    STANDIN_ENTER_UNCAPTURED("cuMemAlloc")
    if (bytes == 0) {
        return INVALID_VALUE;
    }
    Memory& memory = standin::memory();
    const std::lock_guard lock(memory.mutex);
    std::string name = "standin." + std::to_string(getpid()) + "." + std::to_string(++memory.allocations);
    const int file = memfd_create(name.c_str(), MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0 || (*address = map(file, bytes)) == 0) {
        return OUT_OF_MEMORY;
    }
    std::memset(reinterpret_cast<void*>(*address), POISON, bytes);
    memory.blocks[*address] = Block{Kind::memory, device, bytes, std::move(name), file};
    count(Kind::memory, 1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemFree_v2(Address address) {
    STANDIN_ENTER_UNCAPTURED("cuMemFree")
    synchronise_device(device);
    const std::lock_guard lock(memory().mutex);
    const Block* block = find(address, Kind::memory, device, "cuMemFree of what the device has not allocated");
    if (block == nullptr) {
        return INVALID_VALUE;
    }
    for (const auto& [begin, other] : memory().blocks) {
        frees_while_mapped += other.kind == Kind::mapping && other.name == block->name ? 1 : 0;
    }
    retire(address, *block);
    memory().blocks.erase(address);
    count(Kind::memory, -1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemGetAddressRange_v2(Address* base, std::size_t* bytes, Address address) {
    STANDIN_ENTER_CONTEXT("cuMemGetAddressRange")
    const std::lock_guard lock(memory().mutex);
    const auto after = memory().blocks.upper_bound(address);
    if (after == memory().blocks.begin()) {
        return INVALID_VALUE;
    }
    const auto& [begin, block] = *std::prev(after);
    if (address - begin >= block.bytes || block.device != device || block.kind == Kind::pinned) {
        return INVALID_VALUE;
    }
    *base = begin;
    *bytes = block.bytes;
    return SUCCESS;
}

STANDIN_EXPORT Result cuIpcGetMemHandle(Handle* handle, Address address) {
    STANDIN_ENTER_UNCAPTURED("cuIpcGetMemHandle")
    const std::lock_guard lock(memory().mutex);
    const Block* block = find(address, Kind::memory, device, "cuIpcGetMemHandle of what the device has not allocated");
    if (block == nullptr) {
        return INVALID_VALUE;
    }
    *handle = Handle{Handle::MAGIC, getpid(), block->file, {}, block->bytes};
    block->name.copy(handle->name, sizeof(handle->name) - 1);
    return SUCCESS;
}

// Opened again, a mapping of a device stays where it is, and is counted. A device's own memory is not to be mapped.
STANDIN_EXPORT Result cuIpcOpenMemHandle_v2(Address* address, Handle handle, unsigned) {
    STANDIN_ENTER_UNCAPTURED("cuIpcOpenMemHandle")
    const int file = open_file(handle);
    if (file < 0) {
        return INVALID_VALUE;
    }
    const std::lock_guard lock(memory().mutex);
    for (auto& [begin, block] : memory().blocks) {
        if (block.device == device && block.name == handle.name) {
            close(file);
            if (block.kind == Kind::memory) {
                return INVALID_CONTEXT;
            }
            block.opened += 1;
            *address = begin;
            count(Kind::mapping, 1);
            return SUCCESS;
        }
    }
    struct stat status {};
    fstat(file, &status);
    const auto bytes = static_cast<std::size_t>(status.st_size);
    *address = map(file, bytes, loses_stores ? MAP_PRIVATE : MAP_SHARED);
    close(file);
    if (*address == 0) {
        return OUT_OF_MEMORY;
    }
    memory().blocks[*address] = Block{Kind::mapping, device, bytes, handle.name, -1, 1};
    count(Kind::mapping, 1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuIpcCloseMemHandle(Address address) {
    STANDIN_ENTER_UNCAPTURED("cuIpcCloseMemHandle")
    synchronise_device(device);
    const std::lock_guard lock(memory().mutex);
    Block* block = find(address, Kind::mapping, device, "cuIpcCloseMemHandle of what the device has not mapped");
    if (block == nullptr) {
        return INVALID_VALUE;
    }
    count(Kind::mapping, -1);
    if (--block->opened == 0) {
        retire(address, *block);
        memory().blocks.erase(address);
    }
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemHostAlloc(void** pointer, std::size_t bytes, unsigned) {
    STANDIN_ENTER_UNCAPTURED("cuMemHostAlloc")
    const Address address = map(-1, bytes);
    if (address == 0) {
        return OUT_OF_MEMORY;
    }
    *pointer = reinterpret_cast<void*>(address);
    std::memset(*pointer, POISON, bytes);
    const std::lock_guard lock(memory().mutex);
    memory().blocks[address] = Block{Kind::pinned, device, bytes, ""};
    count(Kind::pinned, 1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemFreeHost(void* pointer) {
    STANDIN_ENTER_UNCAPTURED("cuMemFreeHost")
    const auto address = reinterpret_cast<Address>(pointer);
    const std::lock_guard lock(memory().mutex);
    const Block* block = find(address, Kind::pinned, device, "cuMemFreeHost of what is not pinned");
    if (block == nullptr) {
        return INVALID_VALUE;
    }
    retire(address, *block);
    memory().blocks.erase(address);
    count(Kind::pinned, -1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemHostGetDevicePointer_v2(Address* address, void* pointer, unsigned) {
    STANDIN_ENTER_CONTEXT("cuMemHostGetDevicePointer")
    *address = reinterpret_cast<Address>(pointer);
    return SUCCESS;
}

// Copies and fills act in the order of the stream that they name, which is the default one where they name none.
STANDIN_EXPORT Result cuMemcpyHtoD_v2(Address to, const void* from, std::size_t bytes) {
    STANDIN_ENTER_UNCAPTURED("cuMemcpyHtoD")
    find_stream(nullptr)->synchronise();
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemsetD32_v2(Address to, unsigned word, std::size_t words) {
    STANDIN_ENTER_CONTEXT("cuMemsetD32")
    find_stream(nullptr)->enqueue([=] { std::fill_n(reinterpret_cast<unsigned*>(to), words, word); });
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemcpyDtoDAsync_v2(Address to, Address from, std::size_t bytes, Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuMemcpyDtoDAsync")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    stream->enqueue([=] { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemsetD8Async(Address to, unsigned char byte, std::size_t bytes, Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuMemsetD8Async")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    stream->enqueue([=] { std::memset(reinterpret_cast<void*>(to), byte, bytes); });
    return SUCCESS;
}

STANDIN_EXPORT Result cuMemsetD2D32Async(Address to, std::size_t pitch, unsigned word, std::size_t width,
                                         std::size_t height, Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuMemsetD2D32Async")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    stream->enqueue([=] {
        for (std::size_t row = 0; row < height; ++row) {
            std::fill_n(reinterpret_cast<unsigned*>(to + row * pitch), width, word);
        }
    });
    return SUCCESS;
}

// Of memory that is not pinned: it has been read when the call returns.
STANDIN_EXPORT Result cuMemcpyHtoDAsync_v2(Address to, const void* from, std::size_t bytes, Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuMemcpyHtoDAsync")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    const auto* begin = static_cast<const char*>(from);
    stream->enqueue([to, staged = std::vector<char>(begin, begin + bytes)] {
        std::memcpy(reinterpret_cast<void*>(to), staged.data(), staged.size());
    });
    return SUCCESS;
}

// Likewise: it has been written.
STANDIN_EXPORT Result cuMemcpyDtoHAsync_v2(void* to, Address from, std::size_t bytes, Stream* handle) {
    STANDIN_ENTER_CONTEXT("cuMemcpyDtoHAsync")
    Stream* stream = find_stream(handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    if (stream->capture != nullptr) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    stream->synchronise();
    std::memcpy(to, reinterpret_cast<void*>(from), bytes);
    return SUCCESS;
}
