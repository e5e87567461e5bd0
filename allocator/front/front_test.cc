// SPDX-License-Identifier: Apache-2.0
//
// The policy of the caches, above the real layers: --mode=cpu, legacy or locked, final
// for the process.
#include "allocator/front/front.h"

#include <stdint.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "allocator/central/large_blocks.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/front/budget.h"
#include "allocator/front/deferred.h"
#include "allocator/front/demand.h"
#include "allocator/front/test_util.h"
#include "allocator/pages/emergency.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"
#include "percpu/ops.h"
#include "percpu/slabs.h"
#include "tests/support/affinity.h"

namespace pcmalloc::front {
namespace {

std::atomic<uint64_t> by_cached_pointer{0};

uint32_t GrowAfterMiss(int index, unsigned size_class) {
  CountMiss(index, size_class);
  return GrowCapacity(index, size_class);
}

// As the layer above: in the legacy mode a cached pointer first, which the slow way renews.
void* Take(unsigned size_class) {
  if (percpu::CurrentMode() == percpu::Mode::kCached) {
    if (void* p = percpu::PopCached(size_class)) {
      ++by_cached_pointer;
      return p;
    }
  }
  return Allocate(size_class);
}

void Give(unsigned size_class, void* p) {
  if (percpu::CurrentMode() == percpu::Mode::kCached && percpu::PushCached(size_class, p)) {
    ++by_cached_pointer;
    return;
  }
  Deallocate(size_class, p);
}

// For `step` until `done`. How soon misses are frequent is a matter of time, and a loaded machine
// may take most of it from a test: what is to come gets ten seconds.
template <typename Done, typename Step>
bool Eventually(Done done, Step step) {
  const auto start = std::chrono::steady_clock::now();
  while (!done()) {
    if (std::chrono::steady_clock::now() - start > std::chrono::seconds(10)) return false;
    step();
  }
  return true;
}

// Takes a thousand blocks and gives them back.
void SwingWidely(unsigned size_class) {
  std::vector<void*> blocks(1000);
  for (void*& p : blocks) p = Allocate(size_class);
  for (void* p : blocks) Deallocate(size_class, p);
}

TEST_F(Front, BlocksOfEveryClass) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    std::vector<void*> blocks;
    for (int i = 0; i < 100; ++i) {
      void* p = Allocate(c);
      ASSERT_NE(p, nullptr);
      ASSERT_EQ(ClassOf(p), c);
      blocks.push_back(p);
    }
    ASSERT_EQ(std::set<void*>(blocks.begin(), blocks.end()).size(), blocks.size());
    for (void* p : blocks) Deallocate(c, p);
  }
}

// A refill brings a batch: the next allocations are served without the layers below, from ascending
// addresses; the last freed comes out first.
TEST_F(Front, ARefillServesSeveral) {
  const testing::Pinned pinned;
  constexpr unsigned kClass = 3;
  std::vector<void*> warm;
  for (int i = 0; i < 100; ++i) warm.push_back(Allocate(kClass));
  const Stats before = ReadStats();
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) blocks.push_back(Allocate(kClass));
  const Stats after = ReadStats();
  EXPECT_LE(after.refills - before.refills, 16u);
  EXPECT_GE(after.refills - before.refills, 1u);
  EXPECT_GE(after.refill_objects - before.refill_objects, 4 * (after.refills - before.refills));
  for (void* p : blocks) Deallocate(kClass, p);
  EXPECT_EQ(Allocate(kClass), blocks.back());
  Deallocate(kClass, blocks.back());
  for (void* p : warm) Deallocate(kClass, p);
}

// A slab begins compact. A few misses leave it so; a class that goes on missing gets the wide one.
TEST_F(Front, ACrampedSlabBecomesWide) {
  const testing::Pinned pinned;
  constexpr unsigned kClass = 5;
  Deallocate(kClass, Allocate(kClass));
  const int index = percpu::CurrentIndex();
  ShrinkIndex(
      index);  // no class has more than the compact geometry allows, so the books stay right
  ASSERT_TRUE(percpu::Resize(index, MakeCompactGeometry(), Return));
  const uint32_t compact = percpu::CapacityOf(index, kClass).most;
  ASSERT_LT(compact, 64u);
  std::vector<void*> blocks;
  usleep(10000);  // whatever was frequent before is no more
  const auto take = [&] {
    for (int i = 0; i < 100; ++i) blocks.push_back(Allocate(kClass));
  };
  const auto most = [index] { return percpu::CapacityOf(index, kClass).most; };
  take();
  EXPECT_EQ(most(), compact);
  // One way only: what a batch needs is enough.
  EXPECT_TRUE(Eventually([&] { return most() != compact; }, take));
  const uint32_t middle = most();
  EXPECT_GT(middle, compact);
  for (int i = 0; i < 500; ++i) take();
  EXPECT_EQ(most(), middle);
  EXPECT_LT(middle, MakeGeometry().capacity[kClass]);
  EXPECT_EQ(std::set<void*>(blocks.begin(), blocks.end()).size(), blocks.size());
  for (void* p : blocks) Deallocate(kClass, p);
  EXPECT_EQ(most(), middle);
  const auto swing = [] { SwingWidely(kClass); };
  EXPECT_TRUE(Eventually([&] { return most() != middle; }, swing));
  EXPECT_EQ(most(), MakeGeometry().capacity[kClass]);
  EXPECT_TRUE(Eventually([&] { return percpu::CapacityOf(index, kClass).now > middle; }, swing));
}

// By the real clock: some misses every other millisecond give a class nothing beyond
// its first slots.
TEST_F(Front, RareMissesGrowNothing) {
  const testing::Pinned pinned;
  constexpr unsigned kClass = 7;
  Deallocate(kClass, Allocate(kClass));
  const int index = percpu::CurrentIndex();
  ShrinkIndex(index);
  usleep(10000);  // whatever was frequent before is no more
  const Stats before = ReadStats();
  for (int round = 0; round < 100; ++round) {
    usleep(2000);
    std::vector<void*> blocks;
    for (int i = 0; i < 40; ++i) blocks.push_back(Allocate(kClass));
    for (void* p : blocks) Deallocate(kClass, p);
  }
  EXPECT_GT(ReadStats().refills - before.refills, 300u);
  EXPECT_EQ(percpu::CapacityOf(index, kClass).now, kFirstCapacity);
  EXPECT_TRUE(Eventually([index] { return percpu::CapacityOf(index, kClass).now > 100; },
                         [] { SwingWidely(kClass); }));
}

// Half of the slots at a miss, all of them once a class has missed three times the same way.
TEST_F(Front, OneWayMovesAllThereIsRoomFor) {
  const testing::Pinned pinned;
  constexpr unsigned kClass = 12;  // of whole cache lines
  Deallocate(kClass, Allocate(kClass));
  const int index = percpu::CurrentIndex();
  ShrinkIndex(index);
  std::vector<void*> blocks;
  const auto step = [&blocks] {
    const Stats before = ReadStats();
    blocks.push_back(Allocate(kClass));
    const Stats after = ReadStats();
    return after.refill_objects - before.refill_objects;
  };
  std::vector<uint64_t> moved;
  for (int i = 0; i < 60; ++i) {
    usleep(1000);
    if (const uint64_t n = step(); n != 0) moved.push_back(n);
  }
  ASSERT_EQ(percpu::CapacityOf(index, kClass).now, kFirstCapacity);
  ASSERT_GE(moved.size(), 6u);
  EXPECT_EQ(moved[0], kFirstCapacity / 2 + 1);
  EXPECT_EQ(moved[4], kFirstCapacity);
  EXPECT_EQ(moved[5], kFirstCapacity);
  for (void* p : blocks) Deallocate(kClass, p);
}

TEST_F(Front, AFullStackGivesABatchDown) {
  const testing::Pinned pinned;
  constexpr unsigned kClass = 40;
  std::vector<void*> blocks;
  for (int i = 0; i < 5000; ++i) blocks.push_back(Allocate(kClass));
  const Stats before = ReadStats();
  for (void* p : blocks) Deallocate(kClass, p);
  const Stats after = ReadStats();
  EXPECT_GT(after.flushes, before.flushes);
  EXPECT_GT(after.flush_objects - before.flush_objects, after.flushes - before.flushes);
}

TEST_F(Front, TheGeometryBoundsEveryClass) {
  const percpu::Geometry geometry = MakeGeometry();
  EXPECT_EQ(geometry.capacity[0], 0u);
  for (unsigned c = 1; c < kNumClasses; ++c) {
    EXPECT_GE(geometry.capacity[c], 4u);
    EXPECT_LE(geometry.capacity[c], 2048u);
  }
}

TEST_F(Front, GrowthStaysWithinTheBudgetByStealing) {
  const testing::Pinned pinned;
  const uint64_t steals_before = Steals();
  std::mt19937 random(1);
  std::vector<std::pair<unsigned, void*>> held;
  for (int step = 0; step < 30000; ++step) {
    if (held.size() < 300 && random() % 2 == 0) {
      const unsigned c = 1 + random() % (kNumClasses - 1);
      held.emplace_back(c, Allocate(c));
      ASSERT_NE(held.back().second, nullptr);
    } else if (!held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      Deallocate(held.back().first, held.back().second);
      held.pop_back();
    }
    if (step % 500 == 0) CheckBooks();
  }
  for (const auto& [c, p] : held) Deallocate(c, p);
  EXPECT_GT(Steals(), steals_before);
}

// A class that misses gets what the others have: from next to nothing to hundreds of slots.
TEST_F(Front, ABusyClassTakesFromIdleOnes) {
  const testing::Pinned pinned;
  const int index = percpu::CurrentIndex();
  for (int round = 0; round < 20; ++round) {
    for (unsigned c = 1; c < kNumClasses; ++c) GrowAfterMiss(index, c);
  }
  CheckBooks();
  constexpr unsigned kBusy = 64;  // 1 KiB
  uint32_t grown = percpu::CapacityOf(index, kBusy).now;
  for (int round = 0; round < 400; ++round) grown = GrowAfterMiss(index, kBusy);
  CheckBooks();
  EXPECT_EQ(grown, percpu::CapacityOf(index, kBusy).now);
  EXPECT_GE(grown, percpu::CapacityOf(index, kBusy).most / 2);
}

// Where what is in use needs more slots than the budget has, classes do not take from each other at
// every miss what the other needs at its next one.
TEST_F(Front, ClassesInUseKeepWhatTheyUse) {
  const testing::Pinned pinned;
  constexpr unsigned kFirst = kFineClasses + 1, kClassesInUse = 40;  // up to 32 KiB
  SetBudget(size_t{2} << 20);
  std::mt19937 random(1);
  std::vector<std::pair<unsigned, void*>> held(1000);
  const auto replace = [&] {
    auto& [c, p] = held[random() % held.size()];
    if (p != nullptr) Deallocate(c, p);
    c = kFirst + random() % kClassesInUse;
    p = Allocate(c);
    ASSERT_NE(p, nullptr);
  };
  for (int i = 0; i < 20'000; ++i) replace();
  const Stats before = ReadStats();
  for (int i = 0; i < 50'000; ++i) replace();
  const Stats after = ReadStats();
  const uint64_t misses = after.refills + after.flushes - before.refills - before.flushes;
  EXPECT_GT(misses, 1000u) << "all of it fits";
  EXPECT_LT(after.steals - before.steals, misses / 4);
  CheckBooks();
  for (const auto& [c, p] : held) {
    if (p != nullptr) Deallocate(c, p);
  }
  SetBudget(kBudgetBytes);
}

// One that seldom misses, but is not idle, gives to one that misses all the time.
TEST_F(Front, SlotsGoWhereTheyAvoidMoreMisses) {
  const testing::Pinned pinned;
  const int index = percpu::CurrentIndex();
  constexpr unsigned kSeldom = 64, kOften = 60;
  const auto count = [index](unsigned c, int misses) {
    for (int i = 0; i < misses; ++i) CountMiss(index, c);
  };
  const auto fill = [index](unsigned c) {
    for (int i = 0; i < 100; ++i) GrowCapacity(index, c);
    return percpu::CapacityOf(index, c).now;
  };
  ShrinkIndex(index);
  SetBudget(size_t{1} << 20);
  count(kSeldom, 5000);
  const uint32_t all = fill(kSeldom);
  ASSERT_GT(all, 900u);
  for (int i = 0; i < 5000; ++i) count(i % 2 == 0 ? kOften : kSeldom, 1);
  EXPECT_GT(fill(kOften), all / 10);
  const auto left = [index] { return percpu::CapacityOf(index, kSeldom).now; };
  EXPECT_GE(left(), all / 2) << "gives to one that misses no more often";
  count(kOften, 2000);
  fill(kOften);
  EXPECT_LT(left(), all / 2);
  CheckBooks();
  SetBudget(kBudgetBytes);
}

// Large classes that are all in use at once do not take the budget from each other at every miss;
// one that is alone soon gets it.
TEST_F(Front, LargeClassesTakeTurns) {
  const testing::Pinned pinned;
  constexpr int kRounds = 400;
  constexpr unsigned kLargeClasses = kNumCachedClasses - kNumClasses;
  const auto cycle = [](unsigned size_class) {
    void* const p = Allocate(size_class);
    ASSERT_NE(p, nullptr);
    central::MarkCached(p);
    Deallocate(size_class, p);
  };
  const Stats before = ReadStats();
  for (int round = 0; round < kRounds; ++round) {
    for (unsigned c = kNumClasses; c < kNumCachedClasses; ++c) cycle(c);
  }
  const Stats between = ReadStats();
  EXPECT_GT(between.flushes - before.flushes, kRounds * kLargeClasses / 2);
  EXPECT_LT(between.steals - before.steals, kRounds * kLargeClasses / 8);
  for (int round = 0; round < 2 * kRounds; ++round) cycle(kNumClasses);
  const Stats settled = ReadStats();
  for (int round = 0; round < kRounds; ++round) cycle(kNumClasses);
  EXPECT_LT(ReadStats().refills - settled.refills, kRounds / 20u);
  CheckBooks();
}

// The budget is a heap's share, whatever its blocks' size: with 64 MiB in use it is not
// a small one's.
TEST_F(Front, LargeBlocksInUseCountForTheBudget) {
  const testing::Pinned pinned;
  const int index = percpu::CurrentIndex();
  constexpr unsigned kLast = kNumCachedClasses - 1;
  std::vector<void*> held;
  for (int i = 0; i < 64; ++i) held.push_back(Allocate(kLast));
  ASSERT_LT(PageHeap::SmallBytes(), kSmallDivisor * kLeastBudgetBytes);
  for (unsigned c = kNumClasses; c <= kLast; ++c) GrowCapacity(index, c);
  EXPECT_GT(BudgetUsed(index), kLeastBudgetBytes + ClassSize(kLast));
  CheckBooks();
  for (void* p : held) Deallocate(kLast, p);
}

// Misses alone bring an index below a budget that was lowered, and up again once it is raised.
TEST_F(Front, TheBudgetCanChange) {
  const testing::Pinned pinned;
  const int index = percpu::CurrentIndex();
  constexpr unsigned kBusy = 64;
  const auto miss = [&](unsigned c) {
    for (int round = 0; round < 400; ++round) GrowAfterMiss(index, c);
    return BudgetUsed(index);
  };
  const uint64_t slot_of_each = MostBytes() - kBudgetBytes;
  ASSERT_GT(miss(kBusy), uint64_t{512} << 10);
  SetBudget(64 << 10);
  EXPECT_EQ(Budget(), size_t{64} << 10);
  EXPECT_LE(miss(kBusy + 1), (64 << 10) + slot_of_each);
  EXPECT_LE(percpu::CapacityOf(index, kBusy).now, 64u);
  SetBudget(kBudgetBytes);
  EXPECT_GT(miss(kBusy), uint64_t{512} << 10);
}

TEST_F(Front, ShrinkingTakesObjectsAndCapacity) {
  const testing::Pinned pinned;
  const int index = percpu::CurrentIndex();
  std::vector<void*> blocks;
  for (int i = 0; i < 500; ++i) blocks.push_back(Allocate(10));
  for (void* p : blocks) Deallocate(10, p);
  ASSERT_GT(percpu::HeldBy(index, 10), 0u);
  const percpu::Activity before = percpu::ActivityOf(index);
  EXPECT_TRUE(before.holds_items);
  EXPECT_EQ(percpu::ActivityOf(index).state, before.state);
  EXPECT_GT(ShrinkIndex(index), 0u);
  EXPECT_FALSE(percpu::ActivityOf(index).holds_items);
  EXPECT_NE(percpu::ActivityOf(index).state, before.state);
  EXPECT_EQ(BudgetUsed(index), 0u);
  EXPECT_EQ(CapacityBytes(index), 0u);
  void* p = Allocate(10);
  ASSERT_NE(p, nullptr);
  Deallocate(10, p);
  EXPECT_GT(percpu::HeldBy(index, 10), 0u) << "the class does not grow again";
}

TEST_F(Front, TheBooksAreRightAfterACrowd) {
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  for (unsigned id = 1; id <= 6; ++id) {
    threads.emplace_back([id] {
      std::mt19937 random(id);
      std::vector<std::pair<unsigned, void*>> held;
      for (int step = 0; step < 20000; ++step) {
        if (held.size() < 200 && random() % 2 == 0) {
          const unsigned c = 1 + random() % (kNumClasses - 1);
          void* p = Take(c);
          ASSERT_NE(p, nullptr);
          *static_cast<unsigned*>(p) = id;
          held.emplace_back(c, p);
        } else if (!held.empty()) {
          std::swap(held[random() % held.size()], held.back());
          ASSERT_EQ(*static_cast<unsigned*>(held.back().second), id) << "handed out twice";
          Give(held.back().first, held.back().second);
          held.pop_back();
        }
      }
      for (const auto& [c, p] : held) Give(c, p);
    });
  }
  std::thread disturber([&stop] {
    for (unsigned i = 0; !stop; ++i) {
      if (percpu::HighestUsed() == 0) continue;
      const int index = static_cast<int>(i % percpu::HighestUsed());
      if (i % 3 == 0) {
        ResizeIndex(index);
      } else if (i % 3 == 1) {
        ShrinkIndex(index);
      } else {
        DrainIndex(index);
      }
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  disturber.join();
  EXPECT_EQ(by_cached_pointer > 0, percpu::CurrentMode() == percpu::Mode::kCached);
}

// As in a signal handler that interrupted the layers below: frees wait, blocks come from emergency
// memory, and nothing hangs.
TEST_F(Front, WhileTheLayersBelowAreLocked) {
  const testing::Pinned pinned;
  constexpr unsigned kClass = 50;
  std::vector<void*> blocks;
  for (int i = 0; i < 6000; ++i) blocks.push_back(Allocate(kClass));
  Trim();
  const uint64_t deferred_before = DeferredBlocks();
  ASSERT_FALSE(HasDeferred());

  central::LockForFork();
  void* const emergency = Allocate(kClass);
  std::set<void*> put_off(blocks.begin(), blocks.end());
  for (void* p : blocks) Deallocate(kClass, p);
  const uint64_t deferred = DeferredBlocks() - deferred_before;
  const bool waiting = HasDeferred();
  central::UnlockAfterFork(false);

  ASSERT_NE(emergency, nullptr);
  EXPECT_TRUE(EmergencyOwns(emergency));
  EXPECT_GE(EmergencySize(emergency), ClassSize(kClass));
  EmergencyGive(emergency);
  EXPECT_TRUE(waiting);
  EXPECT_GT(deferred, 3000u) << "a slab of this class holds at most 1310";
  EXPECT_EQ(ReadStats().deferred, DeferredBlocks());

  static uint64_t flushed;
  flushed = 0;
  FlushDeferred([](void* p) {
    ++flushed;
    Deallocate(kClass, p);
  });
  EXPECT_EQ(flushed, deferred);
  EXPECT_FALSE(HasDeferred());
}

TEST(Deferred, EachBlockOnceWhoeverFlushes) {
  constexpr size_t kBlocks = 20000;
  static std::vector<std::atomic<int>> times(4 * kBlocks);
  static std::vector<void*> storage(4 * kBlocks * 2);
  static std::atomic<uint64_t> flushed{0};
  const auto flush = [](void* p) {
    ++times[static_cast<size_t>(static_cast<void**>(p) - storage.data()) / 2];
    ++flushed;
  };
  std::vector<std::thread> threads;
  for (size_t id = 0; id < 4; ++id) {
    threads.emplace_back([id, flush] {
      for (size_t i = 0; i < kBlocks; ++i) {
        Defer(&storage[2 * (id * kBlocks + i)]);
        if (i % 100 == 99) FlushDeferred(flush);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  FlushDeferred(flush);
  EXPECT_EQ(flushed, 4 * kBlocks);
  EXPECT_TRUE(std::all_of(times.begin(), times.end(), [](const auto& n) { return n == 1; }));
}

}  // namespace
}  // namespace pcmalloc::front
