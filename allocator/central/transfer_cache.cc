// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/transfer_cache.h"

#include <string.h>

#include <atomic>
#include <new>

#include "allocator/base/report.h"
#include "allocator/central/large_blocks.h"
#include "allocator/central/sweep.h"
#include "allocator/os/memory.h"
#include "allocator/pages/page_heap.h"

namespace pcmalloc::central {
namespace {

constexpr uint32_t kSlots = 1024;
constexpr size_t kMaxBytes = 256 * 1024;  // of one class; at least two batches, whatever they weigh

// All classes together stay in proportion to the heap: what lies here keeps spans from emptying.
constexpr size_t kMaxTotal = size_t{8} << 20;
constexpr size_t kMinTotal = size_t{512} << 10;
constexpr size_t kHeapDivisor = 32;
// Shrunk and looked at when there is too much: a batch must not become a tour of all of them.
constexpr unsigned kVictims = 8;
constexpr unsigned kLooks = 64;
// Fewer than elsewhere go through one array: below are the spans and what returns their memory.
constexpr uint32_t kEvictedAtOnce = 32;

constexpr uint32_t Capacity(unsigned size_class) {
  const size_t size = ClassSize(size_class);
  const size_t batches = size_t{2} * BatchSize(size_class);
  const size_t objects = kMaxBytes / size;
  const size_t capacity = objects < batches ? batches : objects;
  return static_cast<uint32_t>(capacity < kSlots ? capacity : kSlots);
}

struct TransferCache {
  RankedLock<LockRank::kTransfer> lock;
  uint32_t count = 0;
  uint32_t least = 0;  // smallest count since Evict last looked: so many were not needed
};

// The stacks of all classes. In a small heap each class has a few objects here: the lowest slots of
// all classes lie side by side, or every class would touch a page of its own.
struct Slots {
  static constexpr uint32_t kLow = 64;
  void* low[kNumClasses][kLow];
  void* high[kNumClasses][kSlots - kLow];
};

// A part of one class's stack.
class Stack {
 public:
  Stack(Slots* slots, unsigned size_class)
      : low_(slots->low[size_class]), high_(slots->high[size_class]) {}

  void Write(uint32_t at, void* const* in, uint32_t n) const {
    const uint32_t below = Below(at, n);
    if (below != 0) memcpy(low_ + at, in, below * sizeof(void*));
    if (below < n) memcpy(High(at + below), in + below, (n - below) * sizeof(void*));
  }

  void Read(uint32_t at, void** out, uint32_t n) const {
    const uint32_t below = Below(at, n);
    if (below != 0) memcpy(out, low_ + at, below * sizeof(void*));
    if (below < n) memcpy(out + below, High(at + below), (n - below) * sizeof(void*));
  }

  // Moves what lies above the `n` lowest of `count` objects down to the bottom.
  void DropLowest(uint32_t n, uint32_t count) const {
    // Three or four pieces, neither end of which crosses the border between the two parts.
    for (uint32_t at = n; at < count;) {
      uint32_t step = Below(at, count - at);
      if (step == 0) step = count - at;
      const uint32_t below = Below(at - n, step);
      if (below != 0) step = below;
      memmove(Slot(at - n), Slot(at), step * sizeof(void*));
      at += step;
    }
  }

 private:
  static uint32_t Below(uint32_t at, uint32_t n) {
    const uint32_t room = at < Slots::kLow ? Slots::kLow - at : 0;
    return n < room ? n : room;
  }
  void** High(uint32_t at) const { return high_ + (at - Slots::kLow); }
  void** Slot(uint32_t at) const { return at < Slots::kLow ? low_ + at : High(at); }

  void** const low_;
  void** const high_;
};

constinit Slots first_slots = {};

struct Shard {
  TransferCache caches[kNumClasses];
  Slots* slots;  // null: first_slots, so that the first shard is all zero and not in the file

  Stack StackOf(unsigned size_class) const {
    return Stack(slots == nullptr ? &first_slots : slots, size_class);
  }
};

constinit Shard first_shard = {};
constinit std::atomic<Shard*> shards[kMaxShards] = {&first_shard};
constinit std::atomic<unsigned> open_shards{1};  // the highest and one
// A fork must not find a shard that its preparation has not seen.
constinit RankedLock<LockRank::kTransfer> open_lock;
constinit std::atomic<int64_t> total_bytes{0};
constinit std::atomic<uint32_t> next_victim{0};

uint32_t CapacityOf(unsigned size_class) {
  struct Table {
    uint32_t rows[kNumClasses];
  };
  static constexpr Table kTable = [] {
    Table table{};
    for (unsigned c = 1; c < kNumClasses; ++c) table.rows[c] = Capacity(c);
    return table;
  }();
  return kTable.rows[size_class];
}

int64_t TotalLimit() {
  const uint64_t share = PageHeap::SmallBytes() / kHeapDivisor;
  return static_cast<int64_t>(share < kMinTotal   ? kMinTotal
                              : share > kMaxTotal ? kMaxTotal
                                                  : share);
}

// Needs the lock. All that is booked when objects come or go.
void SetCount(TransferCache& cache, unsigned size_class, uint32_t count) {
  const int64_t change = int64_t{count} - cache.count;
  total_bytes.fetch_add(change * kClasses[size_class].size, std::memory_order_relaxed);
  __atomic_store_n(&cache.count, count, __ATOMIC_RELAXED);
  if (count < cache.least) cache.least = count;
}

// Needs the lock. Takes `n` of the objects at the bottom, which have waited longest, into `out`.
void TakeOldest(Shard& shard, unsigned size_class, void** out, uint32_t n) {
  TransferCache& cache = shard.caches[size_class];
  const Stack stack = shard.StackOf(size_class);
  stack.Read(0, out, n);
  stack.DropLowest(n, cache.count);
  SetCount(cache, size_class, cache.count - n);
}

// Needs the lock. Takes `n` objects from the top.
void TakeNewest(Shard& shard, unsigned size_class, void** out, uint32_t n) {
  TransferCache& cache = shard.caches[size_class];
  shard.StackOf(size_class).Read(cache.count - n, out, n);
  SetCount(cache, size_class, cache.count - n);
}

enum class Part {
  kUnneeded,  // at least half, and all that was not needed of late
  kAll,
};

// Gives a part of what the transfer cache has down; returns how many objects. The lock is not held
// for it: who has the page heap may be waiting for a fork that waits for this lock.
uint32_t GiveDown(Shard& shard, unsigned size_class, Part part) {
  TransferCache& cache = shard.caches[size_class];
  if (__atomic_load_n(&cache.count, __ATOMIC_RELAXED) == 0) return 0;
  void* items[kEvictedAtOnce];
  uint32_t left = 0;
  uint32_t moved = 0;
  do {
    uint32_t n;
    {
      LockHolder held(cache.lock);
      if (!held || cache.count == 0) break;
      if (left == 0) {
        left = part == Part::kAll              ? cache.count
               : cache.least > cache.count / 2 ? cache.least
                                               : cache.count / 2 + 1;
      }
      if (left > cache.count) left = cache.count;
      n = left < kEvictedAtOnce ? left : kEvictedAtOnce;
      if (part == Part::kAll) {
        TakeNewest(shard, size_class, items, n);
      } else {
        TakeOldest(shard, size_class, items, n);
      }
      cache.least = cache.count;
    }
    // Cannot be refused: whoever interrupted a holder of the list's lock does not come here.
    const uint32_t given = lists[size_class].Give(size_class, items, n);
    PCMALLOC_CHECK(given == n);
    left -= n;
    moved += n;
  } while (left != 0);
  return moved;
}

// Shrinks transfer caches in turn, but for the one that has just been given to, until the total is
// within its limit or the search is over.
void Evict(unsigned for_shard, unsigned for_class) {
  const int64_t limit = TotalLimit();
  // Threads that search at the same time may look at the same ones.
  unsigned next = next_victim.load(std::memory_order_relaxed);
  unsigned shrunk = 0;
  for (unsigned i = 0; i < kLooks && shrunk < kVictims; ++i, ++next) {
    if (total_bytes.load(std::memory_order_relaxed) <= limit) break;
    const unsigned s = next / (kNumClasses - 1) % open_shards.load(std::memory_order_relaxed);
    const unsigned c = 1 + next % (kNumClasses - 1);
    Shard* const shard = shards[s].load(std::memory_order_acquire);
    if (shard == nullptr || (s == for_shard && c == for_class) ||
        __atomic_load_n(&shard->caches[c].count, __ATOMIC_RELAXED) == 0) {
      continue;
    }
    (void)GiveDown(*shard, c, Part::kUnneeded);
    ++shrunk;
  }
  next_victim.store(next, std::memory_order_relaxed);
}

template <typename Function>
void ForEachShard(Function function) {
  for (std::atomic<Shard*>& entry : shards) {
    Shard* const shard = entry.load(std::memory_order_acquire);
    if (shard != nullptr) function(*shard);
  }
}

}  // namespace

bool OpenShard(unsigned shard) {
  if (shards[shard].load(std::memory_order_acquire) != nullptr) return true;
  LockHolder held(open_lock);
  if (!held) return false;
  if (shards[shard].load(std::memory_order_relaxed) != nullptr) return true;
  constexpr size_t kSlotBytes = sizeof(first_slots);
  constexpr size_t kUnit = size_t{64} << 10;  // a multiple of every kernel page size
  constexpr size_t kBytes = (kSlotBytes + sizeof(Shard) + kUnit - 1) & ~(kUnit - 1);
  void* const memory = os::Reserve(kBytes, kUnit);
  if (memory == nullptr) return false;
  if (!os::Commit(memory, kBytes)) {
    os::Unreserve(memory, kBytes);
    return false;
  }
  Shard* const made = new (static_cast<char*>(memory) + kSlotBytes) Shard;
  made->slots = static_cast<Slots*>(memory);
  shards[shard].store(made, std::memory_order_release);
  if (open_shards.load(std::memory_order_relaxed) <= shard) {
    open_shards.store(shard + 1, std::memory_order_relaxed);
  }
  return true;
}

unsigned OpenShards() {
  unsigned count = 0;
  ForEachShard([&count](const Shard&) { ++count; });
  return count;
}

uint32_t Take(unsigned size_class, void** out, uint32_t n, Shortage* shortage, unsigned shard) {
  *shortage = Shortage::kNone;
  if (size_class >= kNumClasses) return TakeLarge(size_class, out, n, shortage);
  Shard& own = *shards[shard].load(std::memory_order_acquire);
  TransferCache& cache = own.caches[size_class];
  uint32_t taken = 0;
  if (__atomic_load_n(&cache.count, __ATOMIC_RELAXED) != 0) {
    LockHolder held(cache.lock);
    if (held) {
      taken = cache.count < n ? cache.count : n;
      TakeNewest(own, size_class, out, taken);
    }
  }
  if (taken == n) return n;
  return taken + lists[size_class].Take(size_class, out + taken, n - taken, shortage);
}

uint32_t Put(unsigned size_class, void* const* in, uint32_t n, unsigned shard) {
  if (size_class >= kNumClasses) return GiveLarge(in, n);
  Shard& own = *shards[shard].load(std::memory_order_acquire);
  TransferCache& cache = own.caches[size_class];
  uint32_t given = 0;
  {
    LockHolder held(cache.lock);
    if (held) {
      const uint32_t room = CapacityOf(size_class) - cache.count;
      given = room < n ? room : n;
      own.StackOf(size_class).Write(cache.count, in, given);
      SetCount(cache, size_class, cache.count + given);
    }
  }
  return given < n ? given + lists[size_class].Give(size_class, in + given, n - given) : n;
}

void Settle(unsigned size_class, unsigned shard) {
  if (size_class >= kNumClasses) return;
  SweepIfDue();
  if (total_bytes.load(std::memory_order_relaxed) > TotalLimit()) Evict(shard, size_class);
}

size_t TrimClass(unsigned size_class) {
  uint32_t objects = 0;
  ForEachShard(
      [&objects, size_class](Shard& shard) { objects += GiveDown(shard, size_class, Part::kAll); });
  return objects * ClassSize(size_class);
}

size_t Trim() {
  size_t bytes = 0;
  for (unsigned c = 1; c < kNumClasses; ++c) bytes += TrimClass(c);
  return bytes;
}

Stats ClassStats(unsigned size_class) {
  uint64_t in_transfer = 0;
  ForEachShard([&in_transfer, size_class](const Shard& shard) {
    in_transfer += __atomic_load_n(&shard.caches[size_class].count, __ATOMIC_RELAXED);
  });
  const CentralList& list = lists[size_class];
  const size_t size = ClassSize(size_class);
  return {in_transfer, in_transfer * size, list.free_objects(), list.free_objects() * size,
          list.spans()};
}

// The order of the locks is that of the paths: every transfer cache, then every list. Those that
// are refused are left alone on the way back too.
void LockForFork() {
  (void)open_lock.AcquireForFork();
  ForEachShard([](Shard& shard) {
    for (unsigned c = 1; c < kNumClasses; ++c) (void)shard.caches[c].lock.AcquireForFork();
  });
  const bool heap_held = PageHeap::HeldBySelf();
  for (unsigned c = 1; c < kNumClasses; ++c) (void)lists[c].LockForFork(heap_held);
}

void UnlockAfterFork(bool in_child) {
  if (in_child) RecoverSweep();
  for (unsigned c = kNumClasses; c-- > 1;) lists[c].UnlockAfterFork(in_child);
  ForEachShard([in_child](Shard& shard) {
    for (unsigned c = kNumClasses; c-- > 1;) shard.caches[c].lock.ReleaseAfterFork(in_child);
  });
  open_lock.ReleaseAfterFork(in_child);
}

}  // namespace pcmalloc::central
