// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/budget.h"

#include <atomic>

#include "allocator/front/deferred.h"
#include "allocator/front/demand.h"
#include "allocator/front/per_cpu.h"
#include "allocator/pages/page_heap.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/slabs.h"

namespace pcmalloc::front {
namespace {

constinit std::atomic<uint64_t> steals{0};
constinit std::atomic<size_t> budget{kBudgetBytes};

// Classes looked at in one search: a miss must stay short.
constexpr uint32_t kVictimsLookedAt = 16;
// Searches left out after a whole round that found nothing to take: where all that is handed out is
// well used, looking for more would be most of what a miss costs.
constexpr uint16_t kPauseAfterNothing = 64;
// A class gives up slots to one that misses so many times as often for each byte that it has.
constexpr uint64_t kAdvantage = 4;
// What a class can give up must be at least such a part of what the other is to have: small classes
// would lose what they need, again and again, for a hundredth of one large block.
constexpr uint64_t kSmallestPart = 64;
// What a class may grow by when the budget is used up, as a part of it.
constexpr int64_t kLittle = 128;
constexpr uint32_t kStolenAtOnce = 128;

// What free blocks in a slab cost shows in a small heap first: there they get their share of it.
// Large blocks count, since they wait in slabs too: a heap of nothing else would have room for
// two or three.
int64_t Limit() {
  const unsigned slabs = percpu::PopulatedSlabs();
  const uint64_t small = PageHeap::SmallBytes();
  const uint64_t used = PageHeap::UsedBytes();
  const uint64_t large = used < small ? 0 : used - small;  // read at different times
  const uint64_t shared = small < kNotSharedBytes ? 0 : small - kNotSharedBytes;
  const uint64_t share = BudgetAmong(slabs, shared / kSmallDivisor + large / kLargeDivisor);
  const uint64_t wanted = share < kLeastBudgetBytes ? kLeastBudgetBytes : share;
  const uint64_t most = BudgetAmong(slabs, Budget());
  return static_cast<int64_t>(wanted < most ? wanted : most);
}

// Changes a capacity and books what has really changed.
uint32_t Book(int index, unsigned size_class, uint32_t before, uint32_t wanted) {
  const int32_t change = percpu::SetCapacity(index, size_class, wanted);
  OfCpu(index).books.used.fetch_add(int64_t{change} * kClasses[size_class].size,
                                    std::memory_order_relaxed);
  return before + static_cast<uint32_t>(change);
}

// Halves the capacity of other classes until `bytes` are free again, or the search is over: of
// those whose bytes avoid fewer misses than they would in a class that is to have `wanted` slots.
// If all in use were to give, many classes that miss all the time would take from each other at
// every miss what they need at the next. Where the budget is exceeded, anyone gives. The last slot
// goes too: one slot of each class is more than the budget, and a class that nobody uses any more
// must not keep the others small for good.
void Steal(int index, unsigned for_class, uint32_t wanted, int64_t bytes, bool exceeded) {
  Books& book = OfCpu(index).books;
  const uint16_t pause = book.pause.load(std::memory_order_relaxed);
  if (pause != 0 && !exceeded) {
    book.pause.store(static_cast<uint16_t>(pause - 1), std::memory_order_relaxed);
    return;
  }
  const uint64_t misses = RecentMisses(index, for_class);
  const uint64_t wanted_bytes = uint64_t{wanted} * kClasses[for_class].size;
  const uint64_t worthwhile = exceeded ? 0 : wanted_bytes / kSmallestPart;
  uint16_t in_vain = book.in_vain.load(std::memory_order_relaxed);
  for (uint32_t i = 0; i < kVictimsLookedAt && bytes > 0; ++i) {
    const unsigned c =
        1 + book.victim.fetch_add(1, std::memory_order_relaxed) % (kNumCachedClasses - 1);
    ++in_vain;
    const uint32_t before = percpu::CapacityOf(index, c).now;
    if (c == for_class || before == 0) continue;
    const uint64_t its_bytes = uint64_t{before} * kClasses[c].size;
    if (its_bytes / 2 < worthwhile) continue;
    if (!exceeded && RecentMisses(index, c) * kAdvantage * wanted_bytes > misses * its_bytes) {
      continue;
    }
    const uint32_t after = Book(index, c, before, before / 2);
    if (after >= before) continue;
    in_vain = 0;
    steals.fetch_add(1, std::memory_order_relaxed);
    bytes -= int64_t{before - after} * kClasses[c].size;
    // What lies above the new end can still be popped, but it is over budget: a batch of it goes
    // down.
    const uint32_t held = percpu::HeldBy(index, c);
    if (held > after) GiveDown(c, held - after < kStolenAtOnce ? held - after : kStolenAtOnce);
  }
  const bool round = in_vain >= kNumCachedClasses - 1;
  book.in_vain.store(round ? uint16_t{0} : in_vain, std::memory_order_relaxed);
  book.pause.store(round ? kPauseAfterNothing : uint16_t{0}, std::memory_order_relaxed);
}

}  // namespace

size_t Budget() { return budget.load(std::memory_order_relaxed); }

void SetBudget(size_t bytes) {
  budget.store(bytes < INT64_MAX ? bytes : INT64_MAX, std::memory_order_relaxed);
}

uint32_t GrowCapacity(int index, unsigned size_class) {
  const percpu::Capacity capacity = percpu::CapacityOf(index, size_class);
  if (capacity.now >= capacity.most) return capacity.now;
  const uint32_t first = size_class < kNumClasses ? kFirstCapacity : 1;
  uint32_t wanted = capacity.now < first ? first : capacity.now * 2;
  if (wanted > capacity.most) wanted = capacity.most;
  const int64_t size = kClasses[size_class].size;
  const int64_t cost = (int64_t{wanted} - capacity.now) * size;
  const std::atomic<int64_t>& used = OfCpu(index).books.used;
  int64_t limit = Limit();
  const int64_t before = used.load(std::memory_order_relaxed);
  // By a little it may be above that, short of what counts as exceeded: because of single slots;
  // and the one that a program needs which takes and gives a large block in turn may be as much as
  // all of a small heap's budget, of which small classes have a part already.
  const bool exceeded = before > limit + limit / 4;
  if (size_class >= kNumClasses && limit < size + limit / 4) limit = size + limit / 4;
  // A few small blocks' worth is had without a search: that would cost more than they do.
  const bool little = cost <= limit / kLittle && before + cost <= limit + limit / 8;
  if (before + cost > limit && !little) {
    Steal(index, size_class, wanted, before + cost - limit, exceeded);
    const int64_t room = limit - used.load(std::memory_order_relaxed);
    if (room < cost) wanted = capacity.now + static_cast<uint32_t>(room > 0 ? room / size : 0);
    // A class that has nothing at all gets one slot whatever the budget says; large blocks weigh
    // too much for that.
    if (wanted == 0 && size_class < kNumClasses) wanted = 1;
  }
  return Book(index, size_class, capacity.now, wanted);
}

void BookTaken(int index, unsigned size_class, uint32_t slots) {
  OfCpu(index).books.used.fetch_sub(int64_t{slots} * kClasses[size_class].size,
                                    std::memory_order_relaxed);
}

uint64_t BudgetUsed(int index) {
  const int64_t used = OfCpu(index).books.used.load(std::memory_order_relaxed);
  return used < 0 ? 0 : static_cast<uint64_t>(used);
}

uint64_t Steals() { return steals.load(std::memory_order_relaxed); }

}  // namespace pcmalloc::front
