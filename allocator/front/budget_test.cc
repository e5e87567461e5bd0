// SPDX-License-Identifier: Apache-2.0
//
// Who gets slots and who gives them up, by the books alone: in locked mode, which needs no sections.
#include "allocator/front/budget.h"

#include <stddef.h>
#include <stdint.h>

#include "allocator/front/demand.h"
#include "allocator/front/front.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"
#include "tests/support/affinity.h"

namespace pcmalloc::front {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(Budget, IsSharedWhereManyCpusAreInUse) {
  EXPECT_EQ(BudgetAmong(0, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(BudgetAmong(1, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(BudgetAmong(2, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(BudgetAmong(4, 8 * kMiB), 4 * kMiB);
  EXPECT_EQ(BudgetAmong(6, 8 * kMiB), 3 * kMiB);
  EXPECT_EQ(BudgetAmong(256, 8 * kMiB), 3 * kMiB);
  EXPECT_EQ(BudgetAmong(256, SIZE_MAX), SIZE_MAX / 8 * 3);
}

// What a hundred of them have would not make one slot of those that miss all the time, and they would
// miss all the time themselves.
TEST(Budget, SmallClassesKeepWhatALargeOneCouldNotUse) {
  const testing::Pinned pinned;
  void* const p = Allocate(1);  // makes the slab
  ASSERT_NE(p, nullptr);
  Deallocate(1, p);
  const int index = percpu::CurrentIndex();
  ShrinkIndex(index);
  SetBudget(kMiB);
  constexpr unsigned kSmall = 32;
  for (unsigned c = 1; c <= kSmall; ++c) GrowCapacity(index, c);
  ASSERT_EQ(percpu::CapacityOf(index, kSmall).now, kFirstCapacity);
  const auto grow = [index](unsigned c, uint64_t full) {
    for (int i = 0; i < 20 && BudgetUsed(index) < full; ++i) {
      CountMiss(index, c);
      GrowCapacity(index, c);
    }
  };
  const unsigned medium = SizeClassOf(4096), large = SizeClassOf(32768);
  grow(medium, kMiB / 2);
  grow(large, kMiB - kMiB / 16);
  ASSERT_GE(BudgetUsed(index), kMiB / 2);
  for (int i = 0; i < 2000; ++i) {
    CountMiss(index, large);
    GrowCapacity(index, large);
  }
  for (unsigned c = 1; c <= kSmall; ++c) {
    EXPECT_EQ(percpu::CapacityOf(index, c).now, kFirstCapacity) << "class " << c;
  }
  EXPECT_LT(percpu::CapacityOf(index, medium).now, 8u) << "what is worth having is taken";
  ShrinkIndex(index);
  SetBudget(kBudgetBytes);
}

// Nor does it take a search to give a small class the few hundred bytes that end its misses.
TEST(Budget, SmallClassesGrowByALittleMore) {
  const testing::Pinned pinned;
  void* const p = Allocate(1);
  ASSERT_NE(p, nullptr);
  Deallocate(1, p);
  const int index = percpu::CurrentIndex();
  ShrinkIndex(index);
  SetBudget(kMiB);
  constexpr unsigned kSmall = 2;
  for (unsigned c = SizeClassOf(16384); BudgetUsed(index) < kMiB; --c) {
    for (int i = 0; i < 100; ++i) CountMiss(index, c);
    GrowCapacity(index, c);
  }
  const uint64_t full = BudgetUsed(index), steals = Steals();
  uint32_t slots = 0;
  for (int i = 0; i < 6; ++i) slots = GrowCapacity(index, kSmall);
  EXPECT_EQ(slots, 32 * kFirstCapacity);
  EXPECT_EQ(Steals(), steals);
  EXPECT_EQ(BudgetUsed(index), full + slots * ClassSize(kSmall));
  // But not by much.
  for (unsigned c = 1; c <= SizeClassOf(1024); ++c) {
    for (int i = 0; i < 10; ++i) GrowCapacity(index, c);
  }
  EXPECT_LE(BudgetUsed(index), kMiB + kMiB / 8 + kMiB / 64);
  ShrinkIndex(index);
  SetBudget(kBudgetBytes);
}

// A program that takes and gives a large block in turn hits its slot, although small classes have a part
// of what a small heap may cache, and keep it.
TEST(Budget, OneLargeBlockHasItsSlot) {
  const testing::Pinned pinned;
  void* const p = Allocate(1);
  ASSERT_NE(p, nullptr);
  Deallocate(1, p);
  const int index = percpu::CurrentIndex();
  ShrinkIndex(index);
  SetBudget(kMiB);
  constexpr unsigned kSmall = 48;
  for (unsigned c = 1; c <= kSmall; ++c) GrowCapacity(index, c);
  const uint64_t small = BudgetUsed(index);
  ASSERT_GT(small, kMiB / 8);
  const unsigned large = kNumCachedClasses - 1;
  ASSERT_EQ(ClassSize(large), kMiB);
  EXPECT_EQ(GrowCapacity(index, large), 1u);
  EXPECT_EQ(GrowCapacity(index, large), 1u);
  EXPECT_EQ(BudgetUsed(index), small + kMiB);
  ShrinkIndex(index);
  SetBudget(kBudgetBytes);
}

}  // namespace
}  // namespace pcmalloc::front

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  pcmalloc::percpu::InitTable(pcmalloc::rseq::Discover().cpu_bound);
  pcmalloc::percpu::Init(pcmalloc::percpu::Mode::kLocked, pcmalloc::front::MakeGeometry());
  return RUN_ALL_TESTS();
}
