// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a fixture for tests of the layers above the page heap.
// Invariants: when a test ends, whatever was handed out has come back and nothing else holds a
//   span, or the test has failed.
// Cost: for tests.
#ifndef PCMALLOC_ALLOCATOR_PAGES_SPANS_COME_BACK_H_
#define PCMALLOC_ALLOCATOR_PAGES_SPANS_COME_BACK_H_

#include <stdint.h>

#include "allocator/pages/page_heap.h"
#include "gtest/gtest.h"

namespace pcmalloc {

class SpansComeBack : public ::testing::Test {
 protected:
  // Gives what the layer keeps to the page heap.
  virtual void Empty() = 0;

  void SetUp() override {
    Empty();
    spans_before_ = PageHeap::Stats().spans;
  }
  void TearDown() override {
    Empty();
    EXPECT_EQ(PageHeap::Stats().spans, spans_before_) << "objects were lost";
  }

 private:
  uint64_t spans_before_ = 0;
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_SPANS_COME_BACK_H_
