// SPDX-License-Identifier: Apache-2.0
//
// Who gets slots and who gives them up, by the books alone: in locked mode, which
// needs no sections.
#include "allocator/front/budget.h"

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "allocator/front/demand.h"
#include "allocator/front/front.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"
#include "tests/support/affinity.h"

namespace pcmalloc::front {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// A MiB, of which no class has anything yet.
class OneCpusBudget : public ::testing::Test {
 protected:
  void SetUp() override {
    void* const p = Allocate(1);  // makes the slab
    ASSERT_NE(p, nullptr);
    Deallocate(1, p);
    index_ = percpu::CurrentIndex();
    ShrinkIndex(index_);
    SetBudget(kMiB);
  }
  void TearDown() override {
    ShrinkIndex(index_);
    SetBudget(kBudgetBytes);
  }

  const testing::Pinned pinned_;
  int index_ = 0;
};

TEST(Budget, IsSharedWhereManyCpusAreInUse) {
  EXPECT_EQ(BudgetAmong(0, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(BudgetAmong(1, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(BudgetAmong(2, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(BudgetAmong(4, 8 * kMiB), 4 * kMiB);
  EXPECT_EQ(BudgetAmong(6, 8 * kMiB), 3 * kMiB);
  EXPECT_EQ(BudgetAmong(256, 8 * kMiB), 3 * kMiB);
  EXPECT_EQ(BudgetAmong(256, SIZE_MAX), SIZE_MAX / 8 * 3);
}

// A small heap's slab may hold half of what small blocks have beyond 2 MiB and a quarter of what
// large ones have, at least 1 MiB and at most the budget.
TEST_F(OneCpusBudget, GoesByTheHeap) {
  SetBudget(kBudgetBytes);
  std::vector<Span*> spans;
  const auto limit = [this] {
    for (int round = 0; round < 20; ++round) {
      for (unsigned c = SizeClassOf(512); c <= SizeClassOf(2048); ++c) {
        CountMiss(index_, c);
        GrowCapacity(index_, c);
      }
    }
    return BudgetUsed(index_);
  };
  const auto use = [&spans](size_t bytes, unsigned size_class) {
    while (PageHeap::UsedBytes() < bytes) {
      Span* span;
      ASSERT_EQ(PageHeap::Take(kMiB / 4 >> kPageShift, kPageSize, size_class, &span),
                PageResult::kOk);
      spans.push_back(span);
    }
  };
  const auto expect_near = [](uint64_t used, uint64_t limit) {
    EXPECT_GE(used, limit - limit / 16);
    EXPECT_LE(used, limit + limit / 4);
  };
  const unsigned small = SizeClassOf(kMiB / 4);
  expect_near(limit(), kLeastBudgetBytes);
  use(3 * kMiB, small);
  expect_near(limit(), kLeastBudgetBytes);
  use(6 * kMiB, small);
  expect_near(limit(), 2 * kMiB);
  use(14 * kMiB, 0);
  expect_near(limit(), 4 * kMiB);
  use(64 * kMiB, small);
  expect_near(limit(), kBudgetBytes);
  for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
}

// What a hundred of them have would not make one slot of those that miss all the time, and they
// would miss all the time themselves.
TEST_F(OneCpusBudget, SmallClassesKeepWhatALargeOneCouldNotUse) {
  constexpr unsigned kSmall = 32;
  for (unsigned c = 1; c <= kSmall; ++c) GrowCapacity(index_, c);
  ASSERT_EQ(percpu::CapacityOf(index_, kSmall).now, kFirstCapacity);
  const auto grow = [this](unsigned c, uint64_t full) {
    for (int i = 0; i < 20 && BudgetUsed(index_) < full; ++i) {
      CountMiss(index_, c);
      GrowCapacity(index_, c);
    }
  };
  const unsigned medium = SizeClassOf(4096), large = SizeClassOf(32768);
  grow(medium, kMiB / 2);
  grow(large, kMiB - kMiB / 16);
  ASSERT_GE(BudgetUsed(index_), kMiB / 2);
  for (int i = 0; i < 2000; ++i) {
    CountMiss(index_, large);
    GrowCapacity(index_, large);
  }
  for (unsigned c = 1; c <= kSmall; ++c) {
    EXPECT_EQ(percpu::CapacityOf(index_, c).now, kFirstCapacity) << "class " << c;
  }
  EXPECT_LT(percpu::CapacityOf(index_, medium).now, 8u) << "what is worth having is taken";
}

// Nor does it take a search to give a small class the few hundred bytes that end its misses.
TEST_F(OneCpusBudget, SmallClassesGrowByALittleMore) {
  constexpr unsigned kSmall = 2;
  for (unsigned c = SizeClassOf(16384); BudgetUsed(index_) < kMiB; --c) {
    for (int i = 0; i < 100; ++i) CountMiss(index_, c);
    GrowCapacity(index_, c);
  }
  const uint64_t full = BudgetUsed(index_), steals = Steals();
  uint32_t slots = 0;
  for (int i = 0; i < 6; ++i) slots = GrowCapacity(index_, kSmall);
  EXPECT_EQ(slots, 32 * kFirstCapacity);
  EXPECT_EQ(Steals(), steals);
  EXPECT_EQ(BudgetUsed(index_), full + slots * ClassSize(kSmall));
  // But not by much.
  for (unsigned c = 1; c <= SizeClassOf(1024); ++c) {
    for (int i = 0; i < 10; ++i) GrowCapacity(index_, c);
  }
  EXPECT_LE(BudgetUsed(index_), kMiB + kMiB / 8 + kMiB / 64);
}

// A program that takes and gives a large block in turn hits its slot, although small classes have a
// part of what a small heap may cache, and keep it.
TEST_F(OneCpusBudget, OneLargeBlockHasItsSlot) {
  constexpr unsigned kSmall = 48;
  for (unsigned c = 1; c <= kSmall; ++c) GrowCapacity(index_, c);
  const uint64_t small = BudgetUsed(index_);
  ASSERT_GT(small, kMiB / 8);
  const unsigned large = kNumCachedClasses - 1;
  ASSERT_EQ(ClassSize(large), kMiB);
  EXPECT_EQ(GrowCapacity(index_, large), 1u);
  EXPECT_EQ(GrowCapacity(index_, large), 1u);
  EXPECT_EQ(BudgetUsed(index_), small + kMiB);
}

}  // namespace
}  // namespace pcmalloc::front

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  pcmalloc::percpu::InitTable(pcmalloc::rseq::Discover().cpu_bound);
  pcmalloc::percpu::Init(pcmalloc::percpu::Mode::kLocked, pcmalloc::front::MakeGeometry());
  return RUN_ALL_TESTS();
}
