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
    if (waiting_.size() <= rank) {
        waiting_.resize(rank + 1);
    }
}

Memory::Region* Memory::find(Address address) {
    const auto holds = [&](const Region& region) { return region.begin <= address && address < region.end; };
    if (last_ != nullptr && holds(*last_)) {
        return last_;
    }
    auto after = regions_.upper_bound(address);
    if (after == regions_.begin() || !holds(std::prev(after)->second)) {
        return nullptr;
    }
    last_ = &std::prev(after)->second;
    return last_;
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
    return !writes || region->kind == Kind::output || refuse(address, "a store to an input");
}

bool Memory::comes_before(const Store& store, const Accessor& accessor) {
    return store.thread == accessor.thread || (store.block == accessor.block && store.number <= accessor.watermark);
}

std::uint32_t Memory::load(const Accessor& accessor, Address address, bool may_be_stale) {
    auto& waiting = waiting_[accessor.rank];
    if (!waiting.empty()) {
        if (const auto found = waiting.find(address); found != waiting.end()) {
            const auto& stores = found->second;
            const auto last = std::find_if(stores.rbegin(), stores.rend(),
                                           [&](const Store& store) { return comes_before(store, accessor); });
            if (last != stores.rend()) {
                return last->sets_bits ? word(address) | last->word : last->word;
            }
        }
    }
    History& known = history(address);
    const bool is_ordered = known.time <= accessor.floor || known.block == accessor.block || known.is_seen;
    if (may_be_stale && !is_ordered) {
        return known.before;
    }
    known.is_seen = true;
    return word(address);
}

void Memory::store(const Accessor& accessor, Address address, const Store& store) {
    waiting_[accessor.rank][address].push_back(store);
}

void Memory::write(Address address, std::uint32_t value, std::uint64_t block) {
    history(address) = History{word(address), ++time_, block, false};
    *reinterpret_cast<std::uint32_t*>(address) = value;
}

bool Memory::deliver(std::uint32_t rank, Address address) {
    auto& waiting = waiting_[rank];
    const auto found = waiting.find(address);
    const Store store = found->second.front();
    found->second.erase(found->second.begin());
    if (found->second.empty()) {
        waiting.erase(found);
    }
    --*store.outstanding;
    const std::uint32_t before = word(address);
    const std::uint32_t after = store.sets_bits ? before | store.word : store.word;
    write(address, after, store.block);
    return before != after;
}

bool Memory::has_prior_store(const Accessor& accessor) const {
    for (const auto& [address, stores] : waiting_[accessor.rank]) {
        for (const Store& store : stores) {
            if (comes_before(store, accessor)) {
                return true;
            }
        }
    }
    return false;
}

std::uint32_t Memory::increment(const Accessor& accessor, Address address, std::uint32_t last) {
    const std::uint32_t before = word(address);
    write(address, before >= last ? 0 : before + 1, accessor.block);
    return before;
}

}  // namespace emulator
