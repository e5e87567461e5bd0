// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/shapes.h"

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

// Every byte of a span of every class.
TEST(Shapes, DivideIsExact) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    SCOPED_TRACE(c);
    const Shape shape = kShapes[c];
    ASSERT_EQ(shape.size, ClassSize(c));
    ASSERT_GE(shape.objects, 1u);
    ASSERT_LE(size_t{shape.objects} * shape.size, SpanPages(c) * kPageSize);
    uint64_t index = 0;
    uint32_t rest = 0;
    for (uint64_t offset = 0; offset < SpanPages(c) * kPageSize; ++offset) {
      const Quotient quotient = Divide(offset, shape);
      if (quotient.index != index || quotient.exact != (rest == 0)) {
        FAIL() << offset << " -> " << quotient.index << (quotient.exact ? " exactly" : "");
      }
      if (++rest == shape.size) {
        rest = 0;
        ++index;
      }
    }
  }
}

// Where the span map's entry is that of another span, in front or far behind.
TEST(Shapes, AddressesOutsideOfTheSpanAreNoObjects) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    SCOPED_TRACE(c);
    const Shape shape = kShapes[c];
    for (uint64_t distance = shape.size; distance < uint64_t{1} << 47; distance *= 2) {
      EXPECT_GE(Divide(-distance, shape).index, Span::kMaxObjects) << distance;
      if (distance < uint64_t{1} << 45) {
        const uint64_t whole = distance / shape.size * shape.size;
        EXPECT_EQ(Divide(whole, shape).index, distance / shape.size);
        EXPECT_TRUE(Divide(whole, shape).exact);
        EXPECT_FALSE(Divide(whole + 1, shape).exact);
        EXPECT_FALSE(Divide(whole - 1, shape).exact);
      }
    }
  }
}

}  // namespace
}  // namespace pcmalloc
