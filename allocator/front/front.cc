// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/front.h"

#include <atomic>

#include "absl/base/optimization.h"
#include "allocator/central/large_blocks.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/front/budget.h"
#include "allocator/front/deferred.h"
#include "allocator/front/locality.h"
#include "allocator/pages/emergency.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/slabs.h"

namespace pcmalloc::front {
namespace {

static_assert(kNumCachedClasses <= percpu::kSlabClasses);

constexpr size_t kMostBytesOfAClass = size_t{1} << 20;
constexpr uint32_t kMostSlots = 2048;
constexpr uint32_t kFewestSlots = 4;
constexpr uint32_t kCompactSlots = 24;
// Misses of a CPU whose class has all the slots of the compact geometry, before it is left.
constexpr uint32_t kCrampedMisses = 32;

// Of large classes, whose blocks are spans of their own, a few slots fill the budget: several that are
// in use at once would take it from each other at every miss, which costs as much as the visit to the
// page heap that it is to save. So one full stack in so many makes one of them grow.
constexpr uint32_t kFullPerLargeGrowth = 8;

// Misses of one index; on a line of its own because every CPU counts its own.
struct alignas(64) Counters {
  std::atomic<uint64_t> refills{0};
  std::atomic<uint64_t> refill_objects{0};
  std::atomic<uint64_t> flushes{0};
  std::atomic<uint64_t> flush_objects{0};
  std::atomic<uint64_t> refills_of_one{0};  // not among those above
  std::atomic<uint64_t> flushes_of_one{0};
  std::atomic<uint32_t> cramped{0};
  std::atomic<uint32_t> large_full{0};
};
static_assert(sizeof(Counters) == 64);
constinit Counters counters[percpu::kMaxCpus];
constinit std::atomic<uint64_t> direct{0};
constinit std::atomic<uint64_t> drains{0};

void Count(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

// The index whose slab this thread may use, after removing what stands in the way; -1 if nothing
// can.
int ReadyIndex() {
  int index = percpu::CurrentIndex();
  if (index < 0) {
    if (!percpu::PrepareThread()) return -1;
    index = percpu::CurrentIndex();
    if (index < 0) return -1;
  }
  // In locked mode the table is closed for good; the operations make the slab themselves.
  if (percpu::CurrentMode() == percpu::Mode::kLocked) return index;
  if (percpu::OpenSlab(index) == percpu::ClosedSlab() && !percpu::EnsureSlab(index)) return -1;
  return index;
}

uint32_t BatchFor(unsigned size_class, uint32_t capacity) {
  const uint32_t half = capacity / 2 + 1;
  const uint32_t batch = kClasses[size_class].batch;
  return half < batch ? half : batch;
}

uint32_t SlotsFor(unsigned size_class) {
  const size_t slots = kMostBytesOfAClass / kClasses[size_class].size;
  return slots > kMostSlots     ? kMostSlots
         : slots < kFewestSlots ? kFewestSlots
                                : static_cast<uint32_t>(slots);
}

// GrowCapacity, and the move to the wide geometry where that is what it takes.
uint32_t Grow(int index, unsigned size_class) {
  const uint32_t capacity = GrowCapacity(index, size_class);
  if (capacity != kCompactSlots || percpu::CapacityOf(index, size_class).most != kCompactSlots ||
      SlotsFor(size_class) == kCompactSlots) {
    return capacity;
  }
  std::atomic<uint32_t>& cramped = counters[index].cramped;
  const uint32_t misses = cramped.load(std::memory_order_relaxed) + 1;
  cramped.store(misses, std::memory_order_relaxed);
  if (misses < kCrampedMisses) return capacity;
  cramped.store(0, std::memory_order_relaxed);
  percpu::TryResize(index, MakeGeometry(), Return);
  return capacity;
}

// Grow for a stack of a large class that is full. A miss of malloc does without: it brings one block,
// which goes to the caller.
uint32_t GrowLarge(int index, unsigned size_class, uint32_t capacity) {
  std::atomic<uint32_t>& full = counters[index].large_full;
  const uint32_t before = full.load(std::memory_order_relaxed);
  full.store(before + 1, std::memory_order_relaxed);
  return before % kFullPerLargeGrowth == 0 ? Grow(index, size_class) : capacity;
}

void* Emergency(unsigned size_class, Shortage shortage) {
  if (shortage != Shortage::kReentrant) return nullptr;
  // An aligned block is one of a class whose size is a multiple of the alignment.
  const size_t size = kClasses[size_class].size;
  const size_t alignment = size & -size;
  return EmergencyTake(size, alignment < kPageSize ? alignment : kPageSize);
}

}  // namespace

percpu::Geometry MakeGeometry() {
  percpu::Geometry geometry = {};
  for (unsigned c = 1; c < kNumCachedClasses; ++c) geometry.capacity[c] = SlotsFor(c);
  return geometry;
}

percpu::Geometry MakeCompactGeometry() {
  percpu::Geometry geometry = {};
  for (unsigned c = 1; c < kNumCachedClasses; ++c) {
    geometry.capacity[c] = SlotsFor(c) < kCompactSlots ? SlotsFor(c) : kCompactSlots;
  }
  return geometry;
}

void* Allocate(unsigned size_class) {
  const int index = ReadyIndex();
  Shortage shortage;
  void* items[kMaxBatch];
  if (index < 0) {
    Count(direct);
    if (central::Take(size_class, items, 1, &shortage, NearShard()) == 1) return items[0];
    return Emergency(size_class, shortage);
  }
  // The miss may have been for a reason that is gone by now; in locked mode this is the usual way.
  if (percpu::PopBatch(size_class, items, 1) == 1) return items[0];
  const uint32_t wanted =
      size_class >= kNumClasses ? 1 : BatchFor(size_class, Grow(index, size_class));
  const uint32_t got = central::Take(size_class, items, wanted, &shortage, NearShard());
  if (ABSL_PREDICT_FALSE(got == 0)) return Emergency(size_class, shortage);
  if (got == 1) {
    Count(counters[index].refills_of_one);
    return items[0];
  }
  Count(counters[index].refills);
  Count(counters[index].refill_objects, got);
  // The last is what a pop after a push of all would give.
  const uint32_t pushed = percpu::PushBatch(size_class, items, got - 1);
  Return(size_class, items + pushed, got - 1 - pushed);
  return items[got - 1];
}

void Deallocate(unsigned size_class, void* p) {
  const int index = ReadyIndex();
  if (index < 0) {
    Count(direct);
    Return(size_class, &p, 1);
    return;
  }
  if (size_class >= kNumClasses) central::ExpectGive(p);
  if (percpu::PushBatch(size_class, &p, 1) == 1) return;
  const uint32_t before = percpu::CapacityOf(index, size_class).now;
  const uint32_t capacity =
      size_class >= kNumClasses ? GrowLarge(index, size_class, before) : Grow(index, size_class);
  if (capacity > before && percpu::PushBatch(size_class, &p, 1) == 1) return;
  if (capacity == 0) {
    Count(counters[index].flushes_of_one);
    Return(size_class, &p, 1);
    return;
  }
  void* items[kMaxBatch];
  Count(counters[index].flushes);
  const uint32_t taken = percpu::PopBatch(size_class, items, BatchFor(size_class, capacity));
  Count(counters[index].flush_objects, taken);
  Return(size_class, items, taken);
  if (percpu::PushBatch(size_class, &p, 1) == 0) Return(size_class, &p, 1);
}

size_t DrainIndex(int index) {
  Count(drains);
  return percpu::Drain(index, Return);
}

size_t ShrinkIndex(int index) {
  Count(drains);
  uint32_t taken[percpu::kSlabClasses];
  const size_t drained = percpu::Drain(index, Return, taken);
  BookTaken(index, taken);
  return drained;
}

bool ResizeIndex(int index) { return percpu::Resize(index, MakeGeometry(), Return); }

void Trim() {
  for (unsigned i = 0; i < percpu::HighestUsed(); ++i) DrainIndex(static_cast<int>(i));
  central::Trim();
}

Stats ReadStats() {
  Stats stats = {};
  for (unsigned i = 0; i < percpu::HighestUsed(); ++i) {
    const Counters& of = counters[i];
    const uint64_t one_in = of.refills_of_one.load(std::memory_order_relaxed);
    const uint64_t one_out = of.flushes_of_one.load(std::memory_order_relaxed);
    stats.refills += of.refills.load(std::memory_order_relaxed) + one_in;
    stats.refill_objects += of.refill_objects.load(std::memory_order_relaxed) + one_in;
    stats.flushes += of.flushes.load(std::memory_order_relaxed) + one_out;
    stats.flush_objects += of.flush_objects.load(std::memory_order_relaxed) + one_out;
    stats.capacity_bytes += BudgetUsed(static_cast<int>(i));
    for (unsigned c = 1; c < kNumCachedClasses; ++c) {
      const uint64_t bytes = uint64_t{percpu::HeldBy(static_cast<int>(i), c)} * kClasses[c].size;
      stats.held_bytes += bytes;
      if (c >= kNumClasses) stats.held_large_bytes += bytes;
    }
  }
  stats.direct = direct.load(std::memory_order_relaxed);
  stats.steals = Steals();
  stats.drains = drains.load(std::memory_order_relaxed);
  stats.deferred = DeferredBlocks();
  return stats;
}

}  // namespace pcmalloc::front
