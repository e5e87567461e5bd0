// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/holes.h"

#include "absl/numeric/bits.h"
#include "allocator/os/memory.h"

namespace pcmalloc::central {
namespace {

constexpr unsigned kUnitsShift = 6;  // log2 of the bits in Span::holes

// The first object from `index` on that is free, or in use; `objects` if there is none.
uint32_t Next(const Span* span, uint32_t index, bool free) {
  while (index < span->objects) {
    const uint64_t word = span->free_bits[index / 64];
    const uint64_t bits = (free ? word : ~word) >> (index % 64);
    if (bits != 0) {
      index += static_cast<uint32_t>(absl::countr_zero(bits));
      return index < span->objects ? index : span->objects;
    }
    index = (index / 64 + 1) * 64;
  }
  return span->objects;
}

}  // namespace

unsigned HoleShift(const Span* span) {
  const unsigned page = static_cast<unsigned>(absl::countr_zero(os::KernelPageSize()));
  const unsigned covers = static_cast<unsigned>(absl::bit_width(span->bytes() - 1)) - kUnitsShift;
  return span->bytes() >> kUnitsShift == 0 || covers < page ? page : covers;
}

bool MayHaveFreeUnits(const Span* span, size_t bytes) {
  // What lies behind the last object is free without one.
  const size_t tail = span->bytes() - size_t{span->objects} * span->object_size;
  if (bytes <= tail) return true;
  const size_t objects = (bytes - tail) / span->object_size;
  // Of so many in a row half lie in one word, if they do not fill one.
  const unsigned least = objects >= 127 ? 64 : static_cast<unsigned>(objects + 1) / 2;
  for (uint32_t word = 0; word * 64 < span->objects; ++word) {
    uint64_t runs = span->free_bits[word];  // where `length` bits in a row begin
    for (unsigned length = 1; length < least && runs != 0;) {
      const unsigned step = length < least - length ? length : least - length;
      runs &= runs >> step;
      length += step;
    }
    if (runs != 0) return true;
  }
  return false;
}

uint64_t FreeUnits(const Span* span, unsigned shift) {
  const uintptr_t base = HoleBase(span, shift);
  const uintptr_t unit = uintptr_t{1} << shift;
  uint64_t units = 0;
  uint32_t begin = Next(span, 0, true);
  while (begin < span->objects) {
    const uint32_t end = Next(span, begin, false);
    const uintptr_t from = span->start + size_t{begin} * span->object_size;
    // Behind the last object nothing is ever used.
    const uintptr_t to =
        end == span->objects ? span->end() : span->start + size_t{end} * span->object_size;
    const uintptr_t first = (from - base + unit - 1) >> shift;
    const uintptr_t last = (to - base) >> shift;
    if (first < last) units |= ~uint64_t{0} << first & ~uint64_t{0} >> (64 - last);
    begin = Next(span, end, true);
  }
  return units;
}

uint64_t ObjectBytesOf(const Span* span, uint64_t units) {
  const unsigned shift = HoleShift(span);
  const uintptr_t base = HoleBase(span, shift);
  const uintptr_t end = span->start + uintptr_t{span->objects} * span->object_size;
  const unsigned last = static_cast<unsigned>((end - base) >> shift);  // the unit of the end
  const uint64_t bytes = BytesOf(span, units);
  if (last >= 64) return bytes;
  const uint64_t behind = units & (~uint64_t{0} << last);
  const uint64_t before = end - base - (uint64_t{last} << shift);  // of that unit
  return bytes - BytesOf(span, behind) + ((behind >> last & 1) != 0 ? before : 0);
}

uint64_t LongRuns(uint64_t units, unsigned shortest) {
  uint64_t runs = 0;
  while (units != 0) {
    const UnitRun run = FirstRun(units);
    if (run.length >= shortest) runs |= run.units;
    units &= ~run.units;
  }
  return runs;
}

}  // namespace pcmalloc::central
