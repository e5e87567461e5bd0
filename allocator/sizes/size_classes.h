// SPDX-License-Identifier: Apache-2.0
//
// Purpose: from a request in bytes to a size class, and what a class looks like.
//
//      class   0          no class: large blocks, foreign memory
//              1 .. 64    16, 32, 48 ... 1024 bytes: one class every 16 bytes, no table to look up
//              65 .. 128  eight classes per doubling: 1152, 1280 ... 2048, 2304 ... 262144 bytes
//              129 .. 144 the same up to 1 MiB, for blocks that are spans of their own: large
//                         classes, which the per-CPU caches know but the page map does not
//
// Invariants: every class size is a multiple of 16; a class size is never more than 12.5 % above
//   the smallest request above 128 bytes that it serves; the size of the class of a request that is
//   a multiple of 2^k (k <= 13) is a multiple of 2^k too, so aligned blocks need no classes of
//   their own.
// Cost: two instructions up to 1 KiB, about eight above; no memory access.
#ifndef PCMALLOC_ALLOCATOR_SIZES_SIZE_CLASSES_H_
#define PCMALLOC_ALLOCATOR_SIZES_SIZE_CLASSES_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/pages/span.h"

namespace pcmalloc {

inline constexpr size_t kMinAlignment = 16;
inline constexpr size_t kFineLimit = 1024;           // bytes: up to here a class every 16 bytes
inline constexpr size_t kMaxSmallSize = 256 * 1024;  // bytes: larger blocks are spans of their own
inline constexpr size_t kMaxCachedSize = size_t{1} << 20;  // bytes: up to here they have a class
inline constexpr unsigned kFineClasses = kFineLimit / kMinAlignment;
inline constexpr unsigned kNumClasses = 1 + kFineClasses + 8 * 8;   // of small blocks
inline constexpr unsigned kNumCachedClasses = kNumClasses + 8 * 2;  // and of cached large ones

// The class of a request of 1 .. kFineLimit bytes.
constexpr unsigned FineClassOf(size_t size) {
  return static_cast<unsigned>((size + kMinAlignment - 1) / kMinAlignment);
}

// The class of a request of kFineLimit + 1 .. kMaxCachedSize bytes.
constexpr unsigned CoarseClassOf(size_t size) {
  const uint32_t last = static_cast<uint32_t>(size - 1);
  // 10 .. 19; written so that the compiler sees one bsr.
  const unsigned doubling = static_cast<unsigned>(__builtin_clz(last)) ^ 31u;
  // (last >> (doubling - 3)) is 8 .. 15 within a doubling.
  return kFineClasses + 1 - 8 + (doubling - 10) * 8 + (last >> (doubling - 3));
}

// What to ask for so that the block is aligned: the class of a multiple of a power of two up to
// kPageSize is aligned to it. `size` is at most kMaxCachedSize less that.
constexpr size_t AlignedSize(size_t alignment, size_t size) {
  return (size + (size == 0) + alignment - 1) & ~(alignment - 1);
}

// The class of a request of 0 .. kMaxCachedSize bytes; 0 bytes get the smallest class.
constexpr unsigned SizeClassOf(size_t size) {
  if (size > kFineLimit) return CoarseClassOf(size);
  return size == 0 ? 1 : FineClassOf(size);
}

// Bytes of an object of the class; 0 for class 0.
constexpr size_t ClassSize(unsigned size_class) {
  if (size_class <= kFineClasses) return size_class * kMinAlignment;
  const unsigned index = size_class - kFineClasses - 1;
  const unsigned doubling = 10 + index / 8;
  return (size_t{9} + index % 8) << (doubling - 3);
}

// Pages of a span of the class. Of a large one as many as a block has; of a small one at least
// 64 KiB or eight objects where that stays below 1 MiB, at most Span::kMaxObjects objects, and a
// tail of at most 1/16 that no object fits into.
constexpr size_t SpanPages(unsigned size_class) {
  const size_t size = ClassSize(size_class);
  if (size == 0) return 0;
  if (size > kMaxSmallSize) return size / kPageSize;
  size_t wanted = size * 8 < 64 * 1024 ? 64 * 1024 : size * 8;
  if (wanted > 512 * 1024) wanted = size * 4 > 512 * 1024 ? size * 4 : 512 * 1024;
  if (wanted > size * Span::kMaxObjects) wanted = size * Span::kMaxObjects;
  size_t pages = (wanted + kPageSize - 1) / kPageSize;
  while ((pages * kPageSize) % size * 16 > pages * kPageSize) ++pages;
  return pages;
}

// A few hundred make the locks and the dozen calls of a miss cheap beside the objects' own cost.
inline constexpr unsigned kMaxBatch = 256;

// So many of them at most go through an array on the stack, which may be a signal handler's of 8
// KiB, most of which the kernel has used for the registers.
inline constexpr unsigned kMostInArray = 64;

// Objects moved at a time between the per-CPU slab and the layers below.
constexpr unsigned BatchSize(unsigned size_class) {
  const size_t size = ClassSize(size_class);
  if (size == 0) return 0;
  if (size > kMaxSmallSize) return 1;
  const size_t objects = 64 * 1024 / size;
  return objects > kMaxBatch ? kMaxBatch : objects < 2 ? 2 : static_cast<unsigned>(objects);
}

// The same as a table, for the paths that handle a class they did not compute.
struct ClassInfo {
  uint32_t size;
  uint16_t span_pages;
  uint16_t batch;
};
struct ClassTable {
  ClassInfo rows[kNumCachedClasses];
  const ClassInfo& operator[](unsigned size_class) const { return rows[size_class]; }
};
extern const ClassTable kClasses;

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_SIZES_SIZE_CLASSES_H_
