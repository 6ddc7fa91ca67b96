// Modules, and launches of their functions. What a module holds is found by its image, PTX or machine code: the same
// kernel, compiled for the host.
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string_view>

#include "driver.hpp"

using namespace std::string_view_literals;

namespace standin {

namespace {

// The module is its one function, too.
struct Module {
    int device;
    std::string function;
    std::string object;
    bool is_alive = true;
};

[[noreturn]] void give_up(const std::string& why) {
    std::fprintf(stderr, "the stand-in for the CUDA driver: %s\n", why.c_str());
    std::abort();
}

// Loads a kernel's object file once more, which calls functions of this library. A copy, since two loads of one file
// would have one set of shared variables.
Grid::Kernel load(const std::string& object) {
    const int from = open(object.c_str(), O_RDONLY | O_CLOEXEC), copy = memfd_create("kernel", MFD_CLOEXEC);
    struct stat status {};
    if (from < 0 || copy < 0 || fstat(from, &status) != 0 ||
        sendfile(copy, from, nullptr, static_cast<std::size_t>(status.st_size)) != status.st_size) {
        give_up(object + " cannot be copied");
    }
    const std::string path = "/proc/self/fd/" + std::to_string(copy);
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        give_up(dlerror());
    }
    close(from);
    // `copy` stays open, so that the next one has another path: the loader knows files by that, too.
    count(Kind::kernel, 1);
    const auto symbol = [&](const char* name) {
        void* found = dlsym(library, name);
        if (found == nullptr) {
            give_up(object + " has no " + name);
        }
        return found;
    };
    using Place = char* (*)();
    return Grid::Kernel{
        reinterpret_cast<void (*)(const void*)>(symbol("emulator_enter")),
        reinterpret_cast<Place>(symbol("emulator_shared_begin"))(),
        reinterpret_cast<Place>(symbol("emulator_shared_end"))(),
        reinterpret_cast<unsigned long long (*)()>(symbol("emulator_parameter_bytes"))(),
    };
}

// Loads that no grid uses, by object file. Grids of one kernel run at the same time, on several devices or streams.
struct Idle {
    std::mutex mutex;
    std::map<std::string, std::vector<Grid::Kernel>> kernels;
};

Idle& idle() {
    static Idle& idle = *new Idle;
    return idle;
}

Grid::Kernel take(const std::string& object) {
    const std::lock_guard lock(idle().mutex);
    std::vector<Grid::Kernel>& kernels = idle().kernels[object];
    if (kernels.empty()) {
        return load(object);
    }
    const Grid::Kernel kernel = kernels.back();
    kernels.pop_back();
    return kernel;
}

void give_back(const std::string& object, const Grid::Kernel& kernel) {
    const std::lock_guard lock(idle().mutex);
    idle().kernels[object].push_back(kernel);
}

// As in cuda.h.
struct LaunchAttribute {
    unsigned id;
    unsigned padding;
    // A union of 64 bytes.
    unsigned value[16];
};

struct LaunchConfig {
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes;
    Stream* stream;
    const LaunchAttribute* attributes;
    unsigned attribute_count;
};

constexpr unsigned PROGRAMMATIC_STREAM_SERIALIZATION = 6, MEM_SYNC_DOMAIN = 10, MEM_SYNC_DOMAIN_REMOTE = 1;

// Both are permissions, of which no use is made.
bool are_known(const LaunchConfig& config) {
    return std::all_of(config.attributes, config.attributes + config.attribute_count, [](const LaunchAttribute& each) {
        return (each.id == PROGRAMMATIC_STREAM_SERIALIZATION && each.value[0] == 1) ||
               (each.id == MEM_SYNC_DOMAIN && each.value[0] == MEM_SYNC_DOMAIN_REMOTE);
    });
}

constexpr char ELF[] = "\x7f" "ELF";

bool is_elf(const char* image) { return std::strncmp(image, ELF, sizeof(ELF) - 1) == 0; }

// The tables of sections and of segments are last in the files of machine code. PTX ends in a NUL.
std::size_t size_of(const char* image) {
    if (!is_elf(image)) {
        return std::strlen(image) + 1;
    }
    Elf64_Ehdr header{};
    std::memcpy(&header, image, sizeof(header));
    return std::max(header.e_shoff + header.e_shentsize * header.e_shnum,
                    header.e_phoff + header.e_phentsize * header.e_phnum);
}

// The name behind `.entry` in PTX, or behind `.text` in the names of sections of machine code; empty if there is none.
std::string function_of(const char* image, std::size_t size) {
    const std::string_view content(image, size), mark = is_elf(image) ? "\0.text."sv : ".entry "sv;
    const std::size_t found = content.find(mark);
    if (found == std::string_view::npos) {
        return "";
    }
    const std::string_view rest = content.substr(found + mark.size());
    return std::string(rest.substr(0, rest.find_first_of("( \n\0"sv)));
}

}  // namespace

}  // namespace standin

using namespace standin;

STANDIN_EXPORT Result cuModuleLoadData(Module** module, const void* image) {
    STANDIN_ENTER_UNCAPTURED("cuModuleLoadData")
    const auto content = static_cast<const char*>(image);
    const std::size_t size = size_of(content);
    const char* object = resolve(content, size);
    if (object == nullptr) {
        return is_elf(content) ? INVALID_IMAGE : INVALID_PTX;
    }
    *module = new Module{device, function_of(content, size), object};
    count(Kind::module, 1);
    count(Kind::machine_code, is_elf(content) ? 1 : 0);
    return SUCCESS;
}

STANDIN_EXPORT Result cuModuleUnload(Module* module) {
    STANDIN_ENTER_UNCAPTURED("cuModuleUnload")
    if (!module->is_alive || module->device != device) {
        violate("cuModuleUnload of what the device has not loaded");
        return INVALID_HANDLE;
    }
    module->is_alive = false;
    count(Kind::module, -1);
    return SUCCESS;
}

STANDIN_EXPORT Result cuModuleGetFunction(Module** function, Module* module, const char* name) {
    STANDIN_ENTER_CONTEXT("cuModuleGetFunction")
    if (!module->is_alive || module->device != device) {
        return INVALID_HANDLE;
    }
    if (module->function != name) {
        return NOT_FOUND;
    }
    *function = module;
    return SUCCESS;
}

STANDIN_EXPORT Result cuLaunchKernelEx(const LaunchConfig* config, Module* function, void** parameters, void**) {
    STANDIN_ENTER_CONTEXT("cuLaunchKernelEx")
    Stream* stream = find_stream(config->stream);
    if (stream == nullptr || !function->is_alive || function->device != device) {
        return INVALID_HANDLE;
    }
    if (config->grid[0] == 0 || config->block[0] == 0 || config->block[0] > 1024 || config->grid[1] != 1 ||
        config->grid[2] != 1 || config->block[1] != 1 || config->block[2] != 1 || config->shared_bytes != 0 ||
        !are_known(*config)) {
        return INVALID_VALUE;
    }
    Grid grid{function->function, take(function->object), {}, config->grid[0], config->block[0]};
    grid.parameters.resize((grid.kernel.parameter_bytes + 7) / 8 + 1);
    std::memcpy(grid.parameters.data(), parameters[0], grid.kernel.parameter_bytes);
    if (function->function != "fill") {
        check_group(device, *reinterpret_cast<const Group*>(grid.parameters.data()));
    }
    give_back(function->object, grid.kernel);
    // A graph runs it more than once.
    stream->enqueue([grid, object = function->object]() mutable {
        grid.kernel = take(object);
        run(grid);
        give_back(object, grid.kernel);
    });
    return SUCCESS;
}
