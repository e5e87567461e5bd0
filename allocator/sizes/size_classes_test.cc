// SPDX-License-Identifier: Apache-2.0
#include "allocator/sizes/size_classes.h"

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

TEST(SizeClasses, EveryRequestFitsItsClassAndNoSmallerOne) {
  for (size_t size = 1; size <= kMaxSmallSize; ++size) {
    const unsigned c = SizeClassOf(size);
    ASSERT_GT(c, 0u);
    ASSERT_LT(c, kNumClasses);
    ASSERT_GE(ClassSize(c), size);
    ASSERT_LT(ClassSize(c - 1), size) << size;
  }
  EXPECT_EQ(SizeClassOf(0), 1u);
  EXPECT_EQ(SizeClassOf(kMaxSmallSize), kNumClasses - 1);
  EXPECT_EQ(ClassSize(kNumClasses - 1), kMaxSmallSize);
}

TEST(SizeClasses, WasteIsAtMostAnEighthAbove128Bytes) {
  for (size_t size = 129; size <= kMaxSmallSize; ++size) {
    ASSERT_LE(ClassSize(SizeClassOf(size)) - size, size / 8) << size;
  }
}

TEST(SizeClasses, SizesAreMultiplesOf16AndGrow) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    EXPECT_EQ(ClassSize(c) % kMinAlignment, 0u);
    EXPECT_GT(ClassSize(c), ClassSize(c - 1));
    EXPECT_EQ(SizeClassOf(ClassSize(c)), c);
    EXPECT_EQ(kClasses[c].size, ClassSize(c));
  }
}

TEST(SizeClasses, AlignedRequestsGetAlignedClasses) {
  for (size_t alignment = 16; alignment <= kPageSize; alignment *= 2) {
    for (size_t size = alignment; size <= kMaxSmallSize; size += alignment) {
      ASSERT_EQ(ClassSize(SizeClassOf(size)) % alignment, 0u) << size << " aligned " << alignment;
    }
  }
}

TEST(SizeClasses, SpansAreDenseAndBounded) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    const size_t bytes = kClasses[c].span_pages * kPageSize;
    const size_t objects = bytes / ClassSize(c);
    EXPECT_GE(objects, 4u) << c;
    EXPECT_LE(objects, static_cast<size_t>(Span::kMaxObjects)) << c;
    EXPECT_LE((bytes - objects * ClassSize(c)) * 16, bytes) << c;
    EXPECT_LE(bytes, size_t{1} << 20) << c;
    EXPECT_GE(kClasses[c].batch, 2u);
    EXPECT_LE(kClasses[c].batch, kMaxBatch);
  }
}

}  // namespace
}  // namespace pcmalloc
