// SPDX-License-Identifier: Apache-2.0
//
// Purpose: from an address to the size class of its page (one byte load) and to its Span.
//
//      primary_arena.base --> [class of page 0][class of page 1] ...   one byte a page, counted
//                                                                      from the base itself
//      class 0: not a small block (large, free, the maps' own pages)
//
// Invariants: `pages` and `fast_pages` count only pages whose map bytes are readable; they are 0
//   until the first arena exists, so the fast path of free needs no test for "set up". The primary
//   arena never moves and is never unmapped. Entries of further arenas are found by the slow
//   functions only.
// Cost: ClassOf is a subtraction, a shift, a compare and a load; SpanOf two loads more, plus a
//   scan of a handful of arenas for addresses outside of the primary one.
#ifndef PCMALLOC_ALLOCATOR_PAGES_PAGE_MAP_H_
#define PCMALLOC_ALLOCATOR_PAGES_PAGE_MAP_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/pages/span.h"

namespace pcmalloc {

// What the fast path of free reads. In one cache line, plain loads: `base` is written once, before
// `pages` becomes non-zero for the first time; `pages` only grows.
struct PrimaryArena {
  const uint8_t* base;  // of the arena and of its page map
  size_t pages;         // of the arena, from base on, that have a map entry
  // The same for the inline path of free: 0 until PageHeap::OpenFastFree, and for good in every
  // mode whose frees that path cannot serve.
  size_t fast_pages;
  Span* const* spans;  // the span map, counted as the page map is
};
extern "C" __attribute__((visibility("hidden"))) PrimaryArena pcmalloc_primary_arena;

// The size class of the page that holds `p`, or 0 (large, free, foreign, null). Any address is
// allowed. Signal-safe.
inline unsigned PrimaryClassOf(const void* p) {
  // Relaxed loads: plain ones to the processor, but another thread may make the arena longer.
  const uint8_t* const base = __atomic_load_n(&pcmalloc_primary_arena.base, __ATOMIC_RELAXED);
  const size_t page =
      (reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(base)) >> kPageShift;
  if (page >= __atomic_load_n(&pcmalloc_primary_arena.pages, __ATOMIC_RELAXED)) return 0;
  return base[page];
}

// The large or small block's span that starts at `p`, as far as the primary arena's map tells; null
// for everything else. Signal-safe.
inline Span* PrimarySpanAt(const void* p) {
  const PrimaryArena& arena = pcmalloc_primary_arena;
  const size_t page =
      (reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(arena.base)) >> kPageShift;
  if (page >= __atomic_load_n(&arena.pages, __ATOMIC_RELAXED)) return nullptr;
  Span* span = __atomic_load_n(&arena.spans[page], __ATOMIC_RELAXED);
  // Inner pages of large spans keep entries of earlier times.
  return span != nullptr && span->start == reinterpret_cast<uintptr_t>(p) ? span : nullptr;
}

// The same as PrimaryClassOf for all arenas.
unsigned ClassOf(const void* p);

// The span that holds `p`, or null for an address that no arena holds. For a kLarge or kFree span
// only its first and last page are sure to answer, for kSmall every page does; the other pages of a
// kLarge or kFree span answer rightly or null. Never a span that does not hold `p`.
Span* SpanOf(const void* p);

// What the span map has for the page of `p`: the span that holds it; or, unless that is kSmall, one
// that did in earlier times, or null. Inline for the primary arena: for whoever looks up many.
inline Span* SpanEntryOf(const void* p) {
  const PrimaryArena& arena = pcmalloc_primary_arena;
  const size_t page =
      (reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(arena.base)) >> kPageShift;
  if (page >= __atomic_load_n(&arena.pages, __ATOMIC_RELAXED)) return SpanOf(p);
  return __atomic_load_n(&arena.spans[page], __ATOMIC_RELAXED);
}

// Whether the address lies in any arena's used part, the maps not counted.
bool InArena(const void* p);

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_PAGE_MAP_H_
