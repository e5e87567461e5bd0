// SPDX-License-Identifier: Apache-2.0
//
// Two CPUs that use a class for the first time do not get parts of one cache line.
#include <sched.h>
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "allocator/front/front.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"
#include "percpu/slabs.h"
#include "tests/support/affinity.h"

namespace pcmalloc::front {
namespace {

uintptr_t LineOf(const void* p) { return reinterpret_cast<uintptr_t>(p) / 64; }
uintptr_t LastLineOf(const void* p, unsigned size_class) {
  return (reinterpret_cast<uintptr_t>(p) + ClassSize(size_class) - 1) / 64;
}

bool Share(unsigned size_class, const void* a, const void* b) {
  return LineOf(a) <= LastLineOf(b, size_class) && LineOf(b) <= LastLineOf(a, size_class);
}

class Lines : public ::testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    cpus_ = testing::AllowedCpus();
    if (cpus_.size() < 2) GTEST_SKIP() << "one CPU";
    size_class_ = SizeClassOf(GetParam());
    // As if nobody had used a class yet.
    for (unsigned i = 0; i < percpu::HighestUsed(); ++i) ShrinkIndex(static_cast<int>(i));
    Trim();
  }
  std::vector<void*> Some(int cpu) const {
    testing::PinTo(cpu);
    std::vector<void*> blocks;
    for (int i = 0; i < 5; ++i) blocks.push_back(Allocate(size_class_));
    return blocks;
  }
  void TearDown() override {
    cpu_set_t all;
    CPU_ZERO(&all);
    for (const int cpu : cpus_) CPU_SET(cpu, &all);
    ASSERT_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
  }

  std::vector<int> cpus_;
  unsigned size_class_ = 0;
};

TEST_P(Lines, OfFirstBlocksAreOneCpus) {
  const std::vector<void*> here = Some(cpus_[0]);
  const std::vector<void*> there = Some(cpus_[1]);
  for (const void* a : here) {
    for (const void* b : there) EXPECT_FALSE(Share(size_class_, a, b)) << a << " " << b;
  }
  for (void* p : here) Deallocate(size_class_, p);
  for (void* p : there) Deallocate(size_class_, p);
}

// What a CPU frees that it did not allocate lies below blocks of its own.
TEST_P(Lines, OfBlocksFromElsewhereAreNotTheFirstToBeUsed) {
  testing::PinTo(cpus_[0]);
  void* const given = Allocate(size_class_);
  void* const kept = Allocate(size_class_);
  testing::PinTo(cpus_[1]);
  Deallocate(size_class_, given);
  void* const own = Allocate(size_class_);
  EXPECT_NE(own, given);
  EXPECT_FALSE(Share(size_class_, own, kept)) << own << " " << kept;
  Deallocate(size_class_, own);
  testing::PinTo(cpus_[0]);
  Deallocate(size_class_, kept);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Lines, ::testing::Values(16, 32, 48));

}  // namespace
}  // namespace pcmalloc::front
