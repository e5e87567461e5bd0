// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what all spans of small blocks of a class have in common, and from an address in a span
//   to the number of its object.
//
//      offset * inverse = [ index | rest ]     64 bits each; rest < inverse: an object's start
//
// Invariants: the quotient and whether it is exact are right for every offset below 2^46 (2^64
//   divided by the largest size); an address in front of the span, whose offset is near 2^64, gives
//   an index beyond any number of objects.
// Cost: one multiplication, no load but of the class's row.
#ifndef PCMALLOC_ALLOCATOR_CENTRAL_SHAPES_H_
#define PCMALLOC_ALLOCATOR_CENTRAL_SHAPES_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/pages/span.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc {

struct Shape {
  uint64_t inverse;  // 2^64 / size rounded up
  uint32_t size;     // bytes of an object
  uint32_t objects;  // in a span
};

struct ShapeTable {
  Shape rows[kNumClasses];
  constexpr const Shape& operator[](unsigned size_class) const { return rows[size_class]; }
};

inline constexpr ShapeTable kShapes = [] {
  ShapeTable table{};
  for (unsigned c = 1; c < kNumClasses; ++c) {
    const size_t size = ClassSize(c);
    const size_t objects = SpanPages(c) * kPageSize / size;
    table.rows[c] = {
        ~uint64_t{0} / size + 1, static_cast<uint32_t>(size),
        static_cast<uint32_t>(objects < Span::kMaxObjects ? objects : Span::kMaxObjects)};
  }
  return table;
}();

struct Quotient {
  uint64_t index;
  bool exact;  // the offset is that of an object's first byte
};

inline Quotient Divide(uint64_t offset, const Shape& shape) {
  const auto product = static_cast<unsigned __int128>(offset) * shape.inverse;
  return {static_cast<uint64_t>(product >> 64), static_cast<uint64_t>(product) < shape.inverse};
}

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_CENTRAL_SHAPES_H_
