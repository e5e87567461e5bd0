// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the fixture of tests of the front layer.
// Invariants: what was handed out has come back when a test ends, and the books of who may hold how
//   much are right, or the test has failed.
// Cost: for tests.
#ifndef PCMALLOC_ALLOCATOR_FRONT_TEST_UTIL_H_
#define PCMALLOC_ALLOCATOR_FRONT_TEST_UTIL_H_

#include <stdint.h>

#include "allocator/front/budget.h"
#include "allocator/front/front.h"
#include "allocator/pages/spans_come_back.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"
#include "percpu/slabs.h"

namespace pcmalloc::front {

// What the classes of an index really have.
inline uint64_t CapacityBytes(int index) {
  uint64_t bytes = 0;
  for (unsigned c = 1; c < kNumCachedClasses; ++c) {
    bytes += uint64_t{percpu::CapacityOf(index, c).now} * ClassSize(c);
  }
  return bytes;
}

// A class that has nothing gets one slot whatever the budget says.
inline uint64_t MostBytes() {
  uint64_t bytes = kBudgetBytes;
  for (unsigned c = 1; c < kNumClasses; ++c) bytes += ClassSize(c);
  return bytes;
}

inline void CheckBooks() {
  for (unsigned i = 0; i < percpu::HighestUsed(); ++i) {
    const int index = static_cast<int>(i);
    ASSERT_GE(static_cast<int64_t>(BudgetUsed(index)), 0) << "index " << index;
    ASSERT_EQ(BudgetUsed(index), CapacityBytes(index)) << "index " << index;
    ASSERT_LE(BudgetUsed(index), MostBytes()) << "index " << index;
  }
}

class Front : public SpansComeBack {
 protected:
  void Empty() override { Trim(); }
  void TearDown() override {
    SpansComeBack::TearDown();
    CheckBooks();
  }
};

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_TEST_UTIL_H_
