// SPDX-License-Identifier: Apache-2.0
//
// Purpose: which parts of a span that is in use could do without memory: those where all
//   objects are free.
//
//      objects   | o . . . . . . . o . . o . . . . . . . . . |     o in use or in a cache, . free
//      units     |     |     |     |     |     |     |     |
//      free        0     1     0     0     0     1     1          FreeUnits
//
//   A unit is the kernel's page, or as many as it takes for 64 of them to cover the span. Units are
//   aligned to their size, so those at the ends of the span may be there in part: they
//   are never free.
//
// Invariants: bits of Span::holes are set for units that were free when their memory was returned,
//   and cleared before an object that touches them is handed out.
// Cost: FreeUnits: a few instructions a word of free_bits and some ten a run of free objects.
#ifndef PCMALLOC_ALLOCATOR_CENTRAL_HOLES_H_
#define PCMALLOC_ALLOCATOR_CENTRAL_HOLES_H_

#include <stddef.h>
#include <stdint.h>

#include "absl/numeric/bits.h"
#include "allocator/pages/span.h"

namespace pcmalloc::central {

// log2 of the bytes of a unit of the span.
unsigned HoleShift(const Span* span);

// Where unit 0 begins.
inline uintptr_t HoleBase(const Span* span, unsigned shift) {
  return span->start >> shift << shift;
}

// The units that hold nothing but free objects, a bit each.
uint64_t FreeUnits(const Span* span, unsigned shift);

// Whether there may be so many bytes of free units in a row. Rules out most spans whose free
// objects lie scattered, for the tenth of what FreeUnits costs there.
bool MayHaveFreeUnits(const Span* span, size_t bytes);

// The units that `bytes` bytes from an address inside of the span on touch.
inline uint64_t UnitsOf(const Span* span, unsigned shift, uintptr_t start, size_t bytes) {
  const uintptr_t base = HoleBase(span, shift);
  const unsigned first = static_cast<unsigned>((start - base) >> shift);
  const unsigned last = static_cast<unsigned>((start + bytes - 1 - base) >> shift);
  // Unit 64 exists where the span is cut off by it; it is never a hole.
  if (first >= 64) return 0;
  return ~uint64_t{0} << first & ~uint64_t{0} >> (last >= 63 ? 0 : 63 - last);
}

// Bytes of so many units.
inline uint64_t BytesOf(const Span* span, uint64_t units) {
  return static_cast<uint64_t>(absl::popcount(units)) << HoleShift(span);
}

// The same without what lies behind the last object, which is neither free nor in use.
uint64_t ObjectBytesOf(const Span* span, uint64_t units);

// The lowest run of bits of `units`, which must not be 0.
struct UnitRun {
  unsigned first;
  unsigned length;
  uint64_t units;
};
inline UnitRun FirstRun(uint64_t units) {
  const unsigned first = static_cast<unsigned>(absl::countr_zero(units));
  const unsigned length = static_cast<unsigned>(absl::countr_one(units >> first));
  return {first, length, ~uint64_t{0} >> (64 - length) << first};
}

// Those bits of `units` that lie in runs of `shortest` or more.
uint64_t LongRuns(uint64_t units, unsigned shortest);

}  // namespace pcmalloc::central

#endif  // PCMALLOC_ALLOCATOR_CENTRAL_HOLES_H_
