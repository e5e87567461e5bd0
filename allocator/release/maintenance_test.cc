// SPDX-License-Identifier: Apache-2.0
//
// The looks, one by one and at times that the test makes up, over the real layers; the machine's
// files are the test's own.
#include "allocator/release/maintenance.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "allocator/config/config.h"
#include "allocator/front/budget.h"
#include "allocator/front/front.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/limits.h"
#include "allocator/release/own_machine.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"

namespace pcmalloc::release {
namespace {

class MaintenanceTest : public OwnMachine {
 protected:
  void SetUp() override {
    OwnMachine::SetUp();
    ForgetMaintenance();
    Maintain(now_ms);
  }

  // Time passes, with a look a period and whatever else is due.
  uint64_t Pass(uint64_t ms) {
    uint64_t wait = 0;
    for (const uint64_t end = now_ms + ms; now_ms < end;) {
      now_ms += kPeriodMs / 4;
      wait = Maintain(now_ms);
    }
    return wait;
  }
};

TEST_F(MaintenanceTest, WhatNobodyUsesGoesAndThenThereIsNothingToDo) {
  Burst(30 * kMiB);
  ASSERT_TRUE(SlabHolds());
  ASSERT_GT(InTransfer(), 0u);
  ASSERT_GT(PageHeap::Stats().free_bytes, 2 * kMiB);
  const MaintenanceStats before = ReadMaintenanceStats();
  EXPECT_LE(Pass(kPeriodMs), kPeriodMs);
  EXPECT_TRUE(SlabHolds()) << "drained although it was at work a moment ago";
  Pass(3 * kPeriodMs);
  EXPECT_FALSE(SlabHolds());
  EXPECT_EQ(InTransfer(), 0u);
  EXPECT_EQ(ReadMaintenanceStats().idle_drains, before.idle_drains + 1);
  EXPECT_GE(ReadMaintenanceStats().idle_trims, before.idle_trims + 1);
  EXPECT_EQ(Pass(kDecayMs), UINT64_MAX);
  EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
  // Nothing is drained twice.
  EXPECT_EQ(Pass(kDecayMs), UINT64_MAX);
  EXPECT_EQ(ReadMaintenanceStats().idle_drains, before.idle_drains + 1);
}

TEST_F(MaintenanceTest, WhatIsUsedStays) {
  void* kept[100];
  for (void*& p : kept) p = front::Allocate(kClass);
  const MaintenanceStats before = ReadMaintenanceStats();
  size_t held = 0;
  for (int look = 0; look < 40; ++look) {
    // Another depth each time.
    for (int i = 0; i < look % 7 + 1; ++i) front::Deallocate(kClass, kept[i]);
    EXPECT_LE(Pass(kPeriodMs), kPeriodMs) << "asleep for ever while there is work";
    for (int i = 0; i < look % 7 + 1; ++i) kept[i] = front::Allocate(kClass);
    held += SlabHolds();
  }
  EXPECT_EQ(ReadMaintenanceStats().idle_drains, before.idle_drains);
  EXPECT_GT(held, 30u);
  for (void* p : kept) front::Deallocate(kClass, p);
}

// Blocks in use, of which each test leaves a part: those keep the spans of the others.
class Blocks {
 public:
  explicit Blocks(size_t bytes) : blocks_(bytes / ClassSize(kClass)) {
    for (void*& p : blocks_) p = front::Allocate(kClass);
  }
  ~Blocks() { FreeAllBut(0); }
  // Frees all but the first `left` of each eight.
  void FreeAllBut(size_t left) {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i] == nullptr || i % 8 < left) continue;
      front::Deallocate(kClass, blocks_[i]);
      blocks_[i] = nullptr;
    }
  }

 private:
  std::vector<void*> blocks_;
};

TEST_F(MaintenanceTest, WhereMostIsFreeCachesAreEmptiedSoon) {
  Blocks blocks(20 * kMiB);
  auto passes_until_look = [this] {
    int passes = 0;
    for (const uint64_t rounds = ReadMaintenanceStats().rounds;
         ReadMaintenanceStats().rounds == rounds; ++passes) {
      Pass(kPeriodMs / 4);
    }
    return passes;
  };
  blocks.FreeAllBut(6);
  passes_until_look();
  EXPECT_EQ(passes_until_look(), 4);
  EXPECT_TRUE(SlabHolds()) << "drained although most is in use";
  blocks.FreeAllBut(2);
  passes_until_look();
  EXPECT_TRUE(SlabHolds()) << "drained although it was at work a moment ago";
  EXPECT_EQ(passes_until_look(), 1);
  EXPECT_FALSE(SlabHolds());
  EXPECT_GT(InTransfer(), 0u);
  EXPECT_EQ(passes_until_look(), 1);
  EXPECT_EQ(InTransfer(), 0u);
}

// However long it lasts: two looks more a period.
TEST_F(MaintenanceTest, WhatIsUsedKeepsNobodyAwakeWhereMostIsFree) {
  Blocks blocks(20 * kMiB);
  blocks.FreeAllBut(1);
  const MaintenanceStats before = ReadMaintenanceStats();
  void* kept[3];
  for (int turn = 0; turn < 40; ++turn) {
    for (int i = 0; i < turn % 3 + 1; ++i) kept[i] = front::Allocate(kClass);
    Pass(kPeriodMs / 4);
    for (int i = 0; i < turn % 3 + 1; ++i) front::Deallocate(kClass, kept[i]);
  }
  EXPECT_LE(ReadMaintenanceStats().rounds, before.rounds + 3 * 10 + 1);
  EXPECT_GT(ReadMaintenanceStats().rounds, before.rounds + 15) << "there was no hurry";
  EXPECT_EQ(ReadMaintenanceStats().idle_drains, before.idle_drains);
}

// Where a period is as short as the hurry, or shorter, all looks come a period apart.
TEST_F(MaintenanceTest, AHurryIsNoDelay) {
  constexpr struct {
    const char* config;
    uint64_t period;
    uint64_t soonest;
  } kDecays[] = {{"decay:8s", 1000, 100},
                 {"decay:1600ms", 200, 100},
                 {"decay:800ms", 100, 100},
                 {"decay:400ms", 50, 50},
                 {"decay:80ms", 10, 10}};
  Blocks blocks(20 * kMiB);
  blocks.FreeAllBut(1);
  void* kept[3];
  for (const auto& decay : kDecays) {
    SCOPED_TRACE(decay.config);
    ParseConfig(decay.config);
    ForgetMaintenance();
    Maintain(now_ms);
    uint64_t soonest = UINT64_MAX, latest = 0;
    for (size_t turn = 0; turn < 9; ++turn) {
      // Something is at work, so that there is something to wait for.
      for (size_t i = 0; i < turn % 3 + 1; ++i) kept[i] = front::Allocate(kClass);
      const uint64_t rounds = ReadMaintenanceStats().rounds, begin = now_ms;
      while (ReadMaintenanceStats().rounds == rounds) {
        ASSERT_LE(Maintain(++now_ms), decay.period);
        ASSERT_LE(now_ms, begin + decay.period) << "the look comes later than it may";
      }
      for (size_t i = 0; i < turn % 3 + 1; ++i) front::Deallocate(kClass, kept[i]);
      soonest = std::min(soonest, now_ms - begin);
      latest = std::max(latest, now_ms - begin);
    }
    EXPECT_EQ(soonest, decay.soonest);
    EXPECT_EQ(latest, decay.period);
  }
  ParseConfig("decay:8s");
}

// Without the thread: slow paths do it, whatever is at work; not so often where it brings little.
TEST_F(MaintenanceTest, TicksEmptyCachesWhereMostIsFree) {
  Blocks blocks(20 * kMiB);
  blocks.FreeAllBut(6);
  GatherOnTick(now_ms += 1000);
  EXPECT_TRUE(SlabHolds()) << "drained although most is in use";
  blocks.FreeAllBut(2);
  GatherOnTick(now_ms);
  EXPECT_FALSE(SlabHolds());
  EXPECT_EQ(InTransfer(), 0u);
  blocks.FreeAllBut(1);
  GatherOnTick(now_ms += 499);
  EXPECT_TRUE(SlabHolds()) << "blocks in use keep the spans, and still it comes twice a second";
  GatherOnTick(now_ms += 1);
  EXPECT_FALSE(SlabHolds());
}

TEST_F(MaintenanceTest, PressureTakesWhatIsIdleAtOnceAndShrinksCaches) {
  Burst(30 * kMiB);
  Pass(kPeriodMs);
  ASSERT_TRUE(SlabHolds());
  const size_t budget = front::Budget();
  const LimitStats before = ReadLimitStats();
  SetPressure("4.99");
  Pass(kPeriodMs);
  EXPECT_EQ(ReadLimitStats().pressure_rounds, before.pressure_rounds);
  Burst(30 * kMiB);
  SetPressure("5.00");
  Pass(kPeriodMs);
  EXPECT_EQ(ReadLimitStats().pressure_rounds, before.pressure_rounds + 1);
  EXPECT_FALSE(SlabHolds());
  EXPECT_EQ(InTransfer(), 0u);
  EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
  EXPECT_EQ(front::Budget(), budget / 4);
  // While it lasts nothing that is freed stays, and the thread does not sleep for ever.
  Burst(30 * kMiB);
  EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
  SetPressure("1.00");
  EXPECT_LE(Pass(3 * kDecayMs), kPeriodMs);
  EXPECT_EQ(front::Budget(), budget / 4);
  // It ends well below where it began.
  SetPressure("0.99");
  Pass(kPeriodMs);
  EXPECT_EQ(front::Budget(), budget);
  Burst(30 * kMiB);
  EXPECT_GT(PageHeap::Stats().free_bytes, kMiB);
  EXPECT_EQ(Pass(3 * kDecayMs), UINT64_MAX);
}

TEST_F(MaintenanceTest, AMachineThatDoesNotTellIsNotUnderPressure) {
  SetPressure("50.00");
  Pass(kPeriodMs);
  ASSERT_TRUE(UnderPressure());
  std::filesystem::remove(Real("/proc/pressure/memory"));
  Pass(kPeriodMs);
  EXPECT_FALSE(UnderPressure());
}

TEST_F(MaintenanceTest, AGroupsLimitThatComesLaterIsSeen) {
  ASSERT_EQ(ReadLimitStats().cgroup_bytes, kNoLimit);
  ASSERT_EQ(front::Budget(), front::kBudgetBytes);
  Write("/proc/self/cgroup", "0::/g\n");
  Write("/proc/self/mountinfo", "30 22 0:25 / /cg rw - cgroup2 cgroup2 rw\n");
  Write("/cg/g/memory.max", "20971520\n");
  Burst(30 * kMiB);
  Pass(11'000);
  EXPECT_EQ(ReadLimitStats().cgroup_bytes, 20 * kMiB);
  EXPECT_EQ(ReadLimitStats().soft_bytes, 18 * kMiB);
  // An eighth of the soft limit for all CPUs; this thread may use one.
  EXPECT_EQ(front::Budget(), 18 * kMiB / 8);
  Burst(30 * kMiB);
  EXPECT_LE(PageHeap::Footprint(), 18 * kMiB);
  // The smaller of two.
  SetSoftLimit(10 * kMiB);
  EXPECT_EQ(ReadLimitStats().soft_bytes, 10 * kMiB);
  EXPECT_LE(PageHeap::Footprint(), 10 * kMiB);
  SetSoftLimit(kNoLimit);
  EXPECT_EQ(ReadLimitStats().soft_bytes, 18 * kMiB);
  Write("/cg/g/memory.max", "max\n");
  Pass(11'000);
  EXPECT_EQ(ReadLimitStats().soft_bytes, kNoLimit);
  EXPECT_EQ(front::Budget(), front::kBudgetBytes);
}

// A program with one thread has nobody who looks; growth makes it look itself.
TEST_F(MaintenanceTest, GrowthReadsTheGroupsLimit) {
  Write("/proc/self/cgroup", "0::/g\n");
  Write("/proc/self/mountinfo", "30 22 0:25 / /cg rw - cgroup2 cgroup2 rw\n");
  Write("/cg/g/memory.max", "104857600\n");
  PageHeap::SetMark(1);
  Burst(80 * kMiB);
  ASSERT_TRUE(PageHeap::TakeMark());
  EXPECT_FALSE(PageHeap::TakeMark());
  Span* span = nullptr;
  ASSERT_EQ(PageHeap::Take((130 * kMiB) >> kPageShift, kPageSize, 0, &span), PageResult::kOk);
  OnGrowth(now_ms);
  EXPECT_EQ(ReadLimitStats().cgroup_bytes, 100 * kMiB);
  // Above its limit already: the next mark is a step further, not here.
  EXPECT_FALSE(PageHeap::MarkPassed());
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  EXPECT_LE(PageHeap::Footprint(), 90 * kMiB);
}

// What the program keeps by mallopt is not touched. The last test: nothing unsets it.
TEST_F(MaintenanceTest, WhatTheProgramWantsToKeepStays) {
  PageHeap::SetIdleLimit(10 * kMiB);
  Burst(30 * kMiB);
  EXPECT_EQ(Pass(3 * kDecayMs), UINT64_MAX);
  const uint64_t left = PageHeap::Stats().free_bytes;
  EXPECT_GE(left, 7 * kMiB);  // hugepages go as a whole
  EXPECT_LE(left, 11 * kMiB);
}

}  // namespace
}  // namespace pcmalloc::release
