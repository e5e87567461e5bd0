// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a run of allocator pages, and who has it.
//
//      arena   | page map | span map | p p p p p p p p p p p p p p p ...          (p = 8 KiB page)
//                                      \___ Span ___/ \__ Span __/
//
// Invariants: every page of the used part of an arena belongs to exactly one Span; Span objects
//   live outside of the memory they describe and are recycled, never unmapped (see span_store.h).
// Cost: 192 bytes a span, of which one that is not cut into objects uses 64: a cache line, densely
//   packed. Among tens of thousands of large blocks every look at a Span misses the cache.
#ifndef PCMALLOC_ALLOCATOR_PAGES_SPAN_H_
#define PCMALLOC_ALLOCATOR_PAGES_SPAN_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc {

// The allocator's own page: the unit of the page map. Unrelated to the kernel's page size, which is
// asked for at run time.
inline constexpr int kPageShift = 13;
inline constexpr size_t kPageSize = size_t{1} << kPageShift;

// So many pages hold a run of `pages` pages from a multiple of `alignment` bytes on (a power of
// two, >= kPageSize) wherever they begin.
constexpr size_t PagesToAlign(size_t pages, size_t alignment) {
  return pages + (alignment >> kPageShift) - 1;
}

enum class SpanState : uint8_t {
  kFree,    // in the page heap
  kSmall,   // cut into objects of one size class
  kLarge,   // one block
  kCached,  // a free block of a large class, in a cache above, which the page heap knows as kLarge
  kReturning,  // free, and out of the page heap while the operating system takes its memory
};

// An array elsewhere, found by its distance: a pointer to it in half the bytes.
class FreeBits {
 public:
  void SetAt(uint64_t* words) {
    distance_ =
        static_cast<int32_t>(reinterpret_cast<intptr_t>(words) - reinterpret_cast<intptr_t>(this));
  }
  uint64_t& operator[](size_t word) {
    return reinterpret_cast<uint64_t*>(reinterpret_cast<intptr_t>(this) + distance_)[word];
  }
  uint64_t operator[](size_t word) const { return const_cast<FreeBits&>(*this)[word]; }

 private:
  int32_t distance_;
};

struct alignas(64) Span {
  static constexpr int kMaxObjects = 1024;

  // Links of whichever list the span is in: the page heap's while kFree, a central list's while
  // kSmall; unused while kLarge.
  Span* prev;
  Span* next;
  uintptr_t start;  // address of the first byte, a multiple of kPageSize
  uint32_t pages;
  SpanState state;
  uint8_t size_class;  // kSmall: of its objects; kLarge: the large class that fits it exactly, or 0
  bool zeroed;         // kFree, or fresh from PageHeap::Take: every byte reads as zero
  bool returned;       // kFree: the memory is with the operating system
  // kSmall: the fields of allocator/central.
  uint16_t objects;       // how many the span was cut into
  uint32_t free_objects;  // how many of them have their bit set below
  uint32_t object_size;   // bytes
  uint32_t relist_at;     // how many free objects take it to another list, or to the page heap
  uint8_t list_index;     // which occupancy list of its central list the span is in
  bool maps_returned;     // kFree: the memory of its entries in the arena's maps is, too
  bool away;              // kSmall: in no list while memory inside of it is being returned
  bool begun;             // kFree: its first page was once the first of a span in use
  FreeBits free_bits;     // kSmall: kMaxObjects bits, elsewhere in the SpanStore's block
  uint64_t holes;         // kSmall: parts of it without memory, a bit each (see central/holes.h)

  bool in_use() const { return state == SpanState::kSmall || state == SpanState::kLarge; }
  // State and class in one, for whoever compares them for many spans.
  static uint16_t Tag(SpanState state, unsigned size_class) {
    const uint8_t bytes[] = {static_cast<uint8_t>(state), static_cast<uint8_t>(size_class)};
    return __builtin_bit_cast(uint16_t, bytes);
  }
  uint16_t tag() const {
    static_assert(offsetof(Span, size_class) == offsetof(Span, state) + 1);
    uint16_t tag;
    __builtin_memcpy(&tag, &state, sizeof(tag));
    return tag;
  }
  size_t bytes() const { return static_cast<size_t>(pages) << kPageShift; }
  uintptr_t end() const { return start + bytes(); }
};

static_assert(sizeof(Span) == 64);

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_SPAN_H_
