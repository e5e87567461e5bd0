// SPDX-License-Identifier: Apache-2.0
//
// The looks, one by one and at times that the test makes up, over the real layers; the machine's
// files are the test's own.
#include "allocator/release/maintenance.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/front/budget.h"
#include "allocator/front/front.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/limits.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"

namespace pcmalloc::release {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kDecayMs = 8000;
constexpr uint64_t kPeriodMs = 1000;
constexpr unsigned kClass = 13;  // 208 bytes

std::string* root;
uint64_t now_ms = 1'000'000'000;

void Write(const std::string& path, const std::string& content) {
  std::filesystem::create_directories(std::filesystem::path(*root + path).parent_path());
  std::ofstream(*root + path) << content;
}

void SetPressure(const char* percent) {
  Write("/proc/pressure/memory", std::string("some avg10=") + percent + " avg60=0.00\n");
}

// Holds objects of a class for the length of a test, and makes the caches hold some.
class MaintenanceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    sched_getaffinity(0, sizeof(before_), &before_);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &before_)) ++cpu;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    SetPressure("0.00");
    front::Trim();
    PageHeap::Release(SIZE_MAX);
    now_ms += 1'000'000;
    ForgetMaintenance();
    Maintain(now_ms);
  }
  void TearDown() override { sched_setaffinity(0, sizeof(before_), &before_); }

  // Time passes, with a look a period and whatever else is due.
  uint64_t Pass(uint64_t ms) {
    uint64_t wait = 0;
    for (const uint64_t end = now_ms + ms; now_ms < end;) {
      now_ms += kPeriodMs / 4;
      wait = Maintain(now_ms);
    }
    return wait;
  }

  static void Burst(size_t bytes) {
    std::vector<void*> blocks;
    for (size_t taken = 0; taken < bytes; taken += ClassSize(kClass)) {
      blocks.push_back(front::Allocate(kClass));
      memset(blocks.back(), 1, ClassSize(kClass));
    }
    for (void* p : blocks) front::Deallocate(kClass, p);
  }
  static bool SlabHolds() { return percpu::HeldBy(percpu::CurrentIndex(), kClass) != 0; }
  static uint64_t InTransfer() { return central::ClassStats(kClass).transfer_objects; }

 private:
  cpu_set_t before_;
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
  std::filesystem::remove(*root + "/proc/pressure/memory");
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
  OnGrowth();
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

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string name = ::testing::TempDir() + "/machine.XXXXXX";
  if (mkdtemp(name.data()) == nullptr) return 2;
  pcmalloc::release::root = &name;
  pcmalloc::release::SetFilesRoot(name.c_str());
  pcmalloc::ParseConfig("decay:8s");
  const pcmalloc::rseq::Discovery& found = pcmalloc::rseq::Discover();
  const bool sections = found.owner != pcmalloc::rseq::Owner::kNone && found.fence_available;
  pcmalloc::percpu::InitTable(found.cpu_bound);
  pcmalloc::percpu::Init(
      sections ? pcmalloc::percpu::Mode::kCpuId : pcmalloc::percpu::Mode::kLocked,
      pcmalloc::front::MakeGeometry());
  pcmalloc::release::ConfigureLimits();
  const int result = RUN_ALL_TESTS();
  std::filesystem::remove_all(name);
  return result;
}
