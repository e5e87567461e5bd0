// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the large classes: blocks above kMaxSmallSize that are spans of their own, yet go
//   through the per-CPU caches like small ones, so that a buffer of half a megabyte costs no lock.
//
//      page heap --TakeLarge--> kLarge --MarkCached--> kCached, in a slab --MarkTaken--> kLarge
//          ^                                              |
//          '-----------------GiveLarge--------------------'
//
// Invariants: a span in a slab is kCached and its size_class says which slab class; whoever frees
//   it again, or asks for its size, finds that out. The page heap sees it as in use. A span whose
//   length changed belongs to no large class any more.
// Cost: two loads and a store on top of the section; the page heap's lock a block below it.
#ifndef PCMALLOC_ALLOCATOR_CENTRAL_LARGE_BLOCKS_H_
#define PCMALLOC_ALLOCATOR_CENTRAL_LARGE_BLOCKS_H_

#include <stdint.h>

#include "allocator/central/central_list.h"
#include "allocator/pages/page_map.h"
#include "allocator/pages/span.h"

namespace pcmalloc::central {

// The verbs of the layer for a large class, see transfer_cache.h.
uint32_t TakeLarge(unsigned size_class, void** out, uint32_t n, Shortage* shortage);
uint32_t GiveLarge(void* const* in, uint32_t n);

// Says that GiveLarge will follow soon: memory that it reads is fetched meanwhile.
void ExpectGive(void* p);

// clang 14 has __atomic_store_n for integers only.
inline void SetState(Span* span, SpanState state) {
  __atomic_store(&span->state, &state, __ATOMIC_RELAXED);
}

// If a live block of a large class starts at `p`, marks it as free in a cache and returns its span;
// null for everything else. Async-signal-safe.
inline Span* MarkCached(void* p) {
  Span* span = PrimarySpanAt(p);
  if (span == nullptr || span->size_class == 0 || span->state != SpanState::kLarge) return nullptr;
  SetState(span, SpanState::kCached);
  span->zeroed = false;
  return span;
}

// Marks a block of a large class as in use.
inline void MarkTaken(void* p) {
  Span* span = PrimarySpanAt(p);
  // Blocks of other arenas and of emergency memory are never marked.
  if (span != nullptr) SetState(span, SpanState::kLarge);
}

}  // namespace pcmalloc::central

#endif  // PCMALLOC_ALLOCATOR_CENTRAL_LARGE_BLOCKS_H_
