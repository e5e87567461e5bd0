// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/front.h"

#include <atomic>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "allocator/central/large_blocks.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/front/batch.h"
#include "allocator/front/budget.h"
#include "allocator/front/deferred.h"
#include "allocator/front/demand.h"
#include "allocator/front/locality.h"
#include "allocator/front/per_cpu.h"
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
constexpr uint32_t kMiddleSlots = kMaxBatch;
// Misses of a CPU whose class deserves more slots than the geometry has, before it is left.
constexpr uint32_t kCrampedMisses = 32;

// Of large classes, whose blocks are spans of their own, a few slots fill the budget: several that
// are in use at once would take it from each other at every miss, which costs as much as the visit
// to the page heap that it is to save. So one full stack in so many makes one of them grow.
constexpr uint32_t kFullPerLargeGrowth = 8;

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

constexpr uint32_t SlotsFor(unsigned size_class) {
  const size_t slots = kMostBytesOfAClass / ClassSize(size_class);
  return slots > kMostSlots     ? kMostSlots
         : slots < kFewestSlots ? kFewestSlots
                                : static_cast<uint32_t>(slots);
}

constexpr percpu::Geometry AtMost(uint32_t slots) {
  percpu::Geometry geometry = {};
  for (unsigned c = 1; c < kNumCachedClasses; ++c) {
    const uint32_t wanted = SlotsFor(c);
    geometry.capacity[c] = wanted < slots ? wanted : slots;
  }
  return geometry;
}

// Not made where they are needed: that would be on the stack.
constexpr percpu::Geometry kMiddleGeometry = AtMost(kMiddleSlots);
constexpr percpu::Geometry kWideGeometry = AtMost(kMostSlots);

constexpr uint32_t kLine = 64;  // of the processor's cache, bytes

// The fewest blocks of a class that fill whole cache lines.
constexpr uint32_t BlocksOfLines(uint32_t size) {
  const uint32_t alignment = size & -size;
  return alignment < kLine ? kLine / alignment : 1;
}

// A refill of at least `wanted` blocks and of whole lines, if the slots hold it: where two CPUs
// take from one span in turn, neither gets a part of the other's line.
uint32_t WholeLines(unsigned size_class, uint32_t wanted, uint32_t slots) {
  const uint32_t blocks = BlocksOfLines(kClasses[size_class].size);
  const uint32_t whole = (wanted + blocks - 1) / blocks * blocks;
  return whole <= slots + 1 && whole <= kMaxBatch ? whole : wanted;
}

// What a miss is answered with.
struct Answer {
  uint32_t batch;   // objects to move
  uint32_t before;  // slots that there were
  uint32_t slots;   // and are now
};

Answer AnswerMiss(int index, unsigned size_class, Miss miss) {
  const percpu::Capacity capacity = percpu::CapacityOf(index, size_class);
  const Demand demand =
      NoteMiss(index, size_class, miss, capacity.now, kWideGeometry.capacity[size_class]);
  uint32_t slots = capacity.now;
  if (demand.grow) {
    if (slots < capacity.most) {
      slots = GrowCapacity(index, size_class);
    } else {
      std::atomic<uint32_t>& cramped = OfCpu(index).counters.cramped;
      const uint32_t misses = cramped.load(std::memory_order_relaxed) + 1;
      const bool move = misses >= kCrampedMisses;
      cramped.store(move ? 0 : misses, std::memory_order_relaxed);
      if (move) {
        percpu::TryResize(index, capacity.most < kMiddleSlots ? kMiddleGeometry : kWideGeometry,
                          Return);
      }
    }
  }
  return {BatchFor(size_class, slots, demand.one_way), capacity.now, slots};
}

// Of a stack of a large class that is full. 0 objects: it has no slots.
Answer AnswerLargeMiss(int index, unsigned size_class) {
  CountMiss(index, size_class);
  const uint32_t slots = percpu::CapacityOf(index, size_class).now;
  std::atomic<uint32_t>& full = OfCpu(index).counters.large_full;
  const uint32_t before = full.load(std::memory_order_relaxed);
  full.store(before + 1, std::memory_order_relaxed);
  const uint32_t now = before % kFullPerLargeGrowth == 0 ? GrowCapacity(index, size_class) : slots;
  return {now == 0 ? 0 : BatchFor(size_class, now, /*one_way=*/false), slots, now};
}

void* Emergency(unsigned size_class, Shortage shortage) {
  if (shortage != Shortage::kReentrant) return nullptr;
  // An aligned block is one of a class whose size is a multiple of the alignment.
  const size_t size = kClasses[size_class].size;
  const size_t alignment = size & -size;
  return EmergencyTake(size, alignment < kPageSize ? alignment : kPageSize);
}

// The batches, in functions of their own: what grows a class has one on the stack too, and the
// stack may be a signal handler's.

// Takes `wanted` objects from below: one for the caller, the rest into the slab.
ABSL_ATTRIBUTE_NOINLINE void* Refill(int index, unsigned size_class, uint32_t wanted) {
  Batch batch(index, wanted);
  void** const items = batch.items();  // the last of those before, and some more
  Shortage shortage;
  uint32_t taken = 0;
  bool goes_on;
  do {
    const uint32_t before = taken == 0 ? 0 : 1;
    const uint32_t missing = wanted - taken;
    const uint32_t step = missing < batch.most() ? missing : batch.most();
    const uint32_t got = central::Take(size_class, items + before, step, &shortage, NearShard());
    if (ABSL_PREDICT_FALSE(before + got == 0)) return Emergency(size_class, shortage);
    taken += got;
    goes_on = got == step && taken < wanted;
    // The last is what a pop after a push of all would give.
    const uint32_t last = before + got - 1;
    if (last == 0) break;
    const uint32_t pushed = percpu::PushBatch(size_class, items, last);
    if (ABSL_PREDICT_FALSE(pushed < last)) {
      Put(size_class, items + pushed, last - pushed);
      goes_on = false;
    }
    items[0] = items[last];
  } while (goes_on);
  if (taken == 1) {
    Count(OfCpu(index).counters.refills_of_one);
  } else {
    Count(OfCpu(index).counters.refills);
    Count(OfCpu(index).counters.refill_objects, taken);
  }
  return items[0];
}

// The class's first slots on this CPU have just got a block that may come from another CPU, with
// the line that it lies in. What is allocated here next comes from lines of this CPU's own.
ABSL_ATTRIBUTE_NOINLINE void TopUp(unsigned size_class) {
  const uint32_t size = kClasses[size_class].size;
  const uint32_t blocks = BlocksOfLines(size);
  const uint32_t wanted = (kFirstCapacity - 1) / blocks * blocks;
  if (size >= kLine || wanted == 0) return;
  void* items[kFirstCapacity];
  Shortage shortage;
  const uint32_t got = central::Take(size_class, items, wanted, &shortage, NearShard());
  if (got == 0) return;
  const uint32_t pushed = percpu::PushBatch(size_class, items, got);
  Return(size_class, items + pushed, got - pushed);
}

// A block of a large class: one, and for the caller, since slots would not help.
void* TakeOneLarge(int index, unsigned size_class) {
  void* block;
  Shortage shortage;
  if (ABSL_PREDICT_FALSE(central::TakeLarge(size_class, &block, 1, &shortage) == 0)) {
    return Emergency(size_class, shortage);
  }
  Count(OfCpu(index).counters.refills_of_one);
  return block;
}

// Gives `wanted` objects of the slab down.
void Flush(int index, unsigned size_class, uint32_t wanted) {
  Count(OfCpu(index).counters.flushes);
  Count(OfCpu(index).counters.flush_objects, GiveDown(size_class, wanted));
}

}  // namespace

percpu::Geometry MakeGeometry() { return kWideGeometry; }

percpu::Geometry MakeCompactGeometry() { return AtMost(kCompactSlots); }

void* Allocate(unsigned size_class) {
  const int index = ReadyIndex();
  void* item;
  if (index < 0) {
    Count(direct);
    Shortage shortage;
    if (central::Take(size_class, &item, 1, &shortage, NearShard()) == 1) return item;
    return Emergency(size_class, shortage);
  }
  // The miss may have been for a reason that is gone by now; in locked mode this is the usual way.
  if (percpu::PopBatch(size_class, &item, 1) == 1) return item;
  if (size_class >= kNumClasses) return TakeOneLarge(index, size_class);
  const Answer answer = AnswerMiss(index, size_class, Miss::kEmpty);
  return Refill(index, size_class, WholeLines(size_class, answer.batch, answer.slots));
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
  const Answer answer = size_class >= kNumClasses ? AnswerLargeMiss(index, size_class)
                                                  : AnswerMiss(index, size_class, Miss::kFull);
  if (answer.slots > answer.before && percpu::PushBatch(size_class, &p, 1) == 1) {
    if (answer.before == 0 && answer.slots == kFirstCapacity) TopUp(size_class);
    return;
  }
  if (answer.batch == 0) {
    Count(OfCpu(index).counters.flushes_of_one);
    Return(size_class, &p, 1);
    return;
  }
  Flush(index, size_class, answer.batch);
  if (percpu::PushBatch(size_class, &p, 1) == 0) Return(size_class, &p, 1);
}

size_t DrainIndex(int index) {
  Count(drains);
  return percpu::Drain(index, Return);
}

size_t DrainHere() {
  const int index = percpu::CurrentIndex();
  if (index < 0) return 0;
  size_t drained = 0;
  for (unsigned c = 1; c < kNumClasses; ++c) {
    // No more than there was, or two threads could keep each other at it.
    drained += GiveDown(c, percpu::HeldBy(index, c));
  }
  return drained;
}

size_t ShrinkIndex(int index) {
  Count(drains);
  return percpu::Drain(index, Return, BookTaken);
}

bool ResizeIndex(int index) { return percpu::Resize(index, kWideGeometry, Return); }

void Trim() {
  for (unsigned i = 0; i < percpu::HighestUsed(); ++i) DrainIndex(static_cast<int>(i));
  central::Trim();
}

Stats ReadStats() {
  Stats stats = {};
  for (unsigned i = 0; i < percpu::HighestUsed(); ++i) {
    const Counters& of = OfCpu(static_cast<int>(i)).counters;
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
