#include "memory.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace emulator {

void Memory::add(Address begin, std::uint64_t bytes, Kind kind, std::uint32_t rank, std::string name) {
    const bool is_relaxed = kind == Kind::system || kind == Kind::device;
    Region region{begin, begin + bytes, kind, rank, std::move(name), {}};
    region.history.resize(is_relaxed ? bytes / sizeof(std::uint32_t) : 0);
    regions_.emplace(begin, std::move(region));
}

Memory::Region* Memory::find(Address address) {
    const auto holds = [&](const Region& region) { return region.begin <= address && address < region.end; };
    Region*& found = found_[(address >> 10) % found_.size()];
    if (found != nullptr && holds(*found)) {
        return found;
    }
    auto after = regions_.upper_bound(address);
    if (after == regions_.begin() || !holds(std::prev(after)->second)) {
        return nullptr;
    }
    found = &std::prev(after)->second;
    return found;
}

Memory::History& Memory::history(Address address) {
    Region& region = *find(address);
    return region.history[(address - region.begin) / sizeof(std::uint32_t)];
}

std::string Memory::name(Address address) {
    const Region* region = find(address);
    if (region == nullptr) {
        return "no memory of the kernels";
    }
    return "rank " + std::to_string(region->rank) + "'s " + region->name + " + " +
           std::to_string(address - region->begin);
}

bool Memory::refuse(Address address, const char* why) {
    error_ = std::string(why) + ": " + name(address);
    return false;
}

bool Memory::check_relaxed(const Accessor& accessor, Address address, bool is_system) {
    const Region* region = find(address);
    if (region == nullptr || address + sizeof(std::uint32_t) > region->end) {
        return refuse(address, "a relaxed access outside the kernels' memory");
    }
    if (address % sizeof(std::uint32_t) != 0) {
        return refuse(address, "a word that is not aligned");
    }
    if (!accessor.has_waited) {
        return refuse(address, "a relaxed access before the wait for the grids before");
    }
    switch (region->kind) {
        case Kind::system:
            return is_system || refuse(address, "an access of device scope to what other devices reach");
        case Kind::device:
            return region->rank == accessor.rank || refuse(address, "an access to another device's control words");
        default:
            return refuse(address, "a relaxed access to a tensor");
    }
}

bool Memory::check_weak(const Accessor& accessor, Address address, std::uint32_t bytes, bool writes) {
    const Region* region = find(address);
    if (region == nullptr || address + bytes > region->end) {
        return refuse(address, "an access beyond a tensor's end, or to no tensor");
    }
    if (address % bytes != 0) {
        return refuse(address, "a vector that is not aligned");
    }
    if (region->kind == Kind::system || region->kind == Kind::device) {
        return refuse(address, "a weak access to what other threads access: a data race");
    }
    if (region->rank != accessor.rank) {
        return refuse(address, "an access to another rank's tensor");
    }
    if (!accessor.has_waited && region->kind != Kind::weight) {
        return refuse(address, "an access to a tensor before the wait for the grids before");
    }
    return !writes || region->kind == Kind::output || refuse(address, "a store to an input");
}

bool Memory::comes_before(const Store& store, const Accessor& accessor) {
    return store.thread == accessor.thread || (store.block == accessor.block && store.number <= accessor.watermark);
}

std::uint32_t Memory::load(const Accessor& accessor, Address address, bool may_be_stale) {
    History& known = history(address);
    const Store* last = nullptr;
    for (std::uint32_t at = known.waiting; at != 0; at = stores_[at - 1].next) {
        last = comes_before(stores_[at - 1], accessor) ? &stores_[at - 1] : last;
    }
    if (last != nullptr) {
        return last->sets_bits ? word(address) | last->word : last->word;
    }
    const bool is_ordered =
        known.time <= std::max(accessor.floor, settled_) || known.block == accessor.block || known.is_seen;
    if (may_be_stale && !is_ordered) {
        return known.before;
    }
    known.is_seen = true;
    return word(address);
}

void Memory::store(Address address, const Store& store) {
    std::uint32_t at = free_;
    if (at == 0) {
        stores_.push_back(store);
        at = static_cast<std::uint32_t>(stores_.size());
    } else {
        free_ = stores_[at - 1].next;
        stores_[at - 1] = store;
    }
    std::uint32_t* end = &history(address).waiting;
    while (*end != 0) {
        end = &stores_[*end - 1].next;
    }
    *end = at;
}

bool Memory::deliver(std::uint32_t rank, Address address) {
    History& known = history(address);
    std::uint32_t* link = &known.waiting;
    while (stores_[*link - 1].rank != rank) {
        link = &stores_[*link - 1].next;
    }
    const std::uint32_t at = *link;
    Store& store = stores_[at - 1];
    *link = store.next;
    --*store.outstanding;
    write(address, known, store.sets_bits ? word(address) | store.word : store.word, store.block);
    store = Store{};
    store.next = free_;
    free_ = at;
    const bool is_polled = known.is_polled;
    known.is_polled = false;
    return is_polled;
}

bool Memory::has_prior_store(const Accessor& accessor) const {
    return std::any_of(stores_.begin(), stores_.end(), [&](const Store& store) {
        return store.outstanding != nullptr && comes_before(store, accessor);
    });
}

void Memory::write(Address address, History& known, std::uint32_t value, std::uint64_t block) {
    known.before = word(address);
    known.time = ++time_;
    known.block = block;
    known.is_seen = false;
    *reinterpret_cast<std::uint32_t*>(address) = value;
}

std::uint32_t Memory::increment(const Accessor& accessor, Address address, std::uint32_t last) {
    const std::uint32_t before = word(address);
    write(address, history(address), before >= last ? 0 : before + 1, accessor.block);
    return before;
}

}  // namespace emulator
