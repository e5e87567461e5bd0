// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the state of the page heap and how pages move between its states, for the files that
//   make it up: page_heap.cc (what callers ask for) and return.cc (what the system gets back).
//
//      in use --Give--> warm --Returning--> cold --Take--> in use
//               Take <--/                    ^-- fresh from Arena::Grow
//
// Invariants: `lock` guards everything here. A cold span has no memory behind it, so it reads as
//   zero and `returned` and `zeroed` are one thing for free spans. Cold spans begin and end on the
//   kernel's pages: where those are longer than ours, the rest of a kernel page that is taken in
//   part becomes warm. `return_lock` is held while spans are kReturning, and taken before `lock`.
// Cost: constant time each.
#ifndef PCMALLOC_ALLOCATOR_PAGES_HEAP_H_
#define PCMALLOC_ALLOCATOR_PAGES_HEAP_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>

#include "allocator/base/lock.h"
#include "allocator/pages/arena.h"
#include "allocator/pages/free_spans.h"
#include "allocator/pages/release_policy.h"
#include "allocator/pages/span.h"
#include "allocator/pages/span_store.h"

namespace pcmalloc::pages {

// Read without the lock; UINT64_MAX where there is none.
struct HeapLimits {
  std::atomic<uint64_t> soft{UINT64_MAX};
  std::atomic<uint64_t> hard{UINT64_MAX};
  std::atomic<uint64_t> mark{UINT64_MAX};
  std::atomic<bool> mark_passed{false};
};

struct Heap {
  RankedLock<LockRank::kReturn> return_lock;
  RankedLock<LockRank::kPages> lock;
  FreeSpans warm;
  FreeSpans cold;
  SpanStore store;
  uint64_t small_pages = 0;
  uint64_t large_pages = 0;
  uint64_t spans_in_use = 0;
  uint64_t releases = 0;
  // In kReturning spans. Read without the lock by those who found too little memory.
  std::atomic<uint64_t> returning_pages{0};
  // Set when a pass of the policy found too little to return: no next one until so much is idle.
  uint64_t next_pass_bytes = 0;
  uint64_t idle_limit = ReleasePolicy::kIdleBytes;
  uint64_t idle_kept = 0;  // what decay leaves alone, because the program said so
  HeapLimits limits;
  std::atomic<bool> helped{false};  // somebody calls Decay: slow paths need not look at the clock
  IdleAges ages;
  uint64_t least_idle = 0;  // warm pages, since the last step of the ages
  // When the next step is due; 0 before the first. Read without the lock.
  std::atomic<uint64_t> next_step_ms{0};
};
extern Heap heap;

constexpr uint64_t Bytes(uint64_t pages) { return pages << kPageShift; }
// Read without the lock.
inline void SetSmallPages(uint64_t pages) {
  __atomic_store_n(&heap.small_pages, pages, __ATOMIC_RELAXED);
}
inline uint64_t UsedBytes() { return Bytes(heap.small_pages + heap.large_pages); }

inline FreeSpans& ListFor(bool returned) { return returned ? heap.cold : heap.warm; }

Arena& ArenaOf(const Span* span);

// To be called after warm pages were taken.
inline void NoteIdle() {
  if (heap.warm.pages() < heap.least_idle) heap.least_idle = heap.warm.pages();
}

// Gives a span the pages, without looking at neighbours.
void MakeFree(Arena& arena, Span* span, uintptr_t start, size_t pages, bool returned);

// The same, merged with free neighbours of its kind.
Span* MakeFreeMerged(Arena& arena, Span* span, uintptr_t start, size_t pages, bool returned);

// Most Span objects that CarveOut makes: a cold and a warm rest either side.
inline constexpr size_t kSpansPerCarve = 4;

// Takes `pages` pages from `start` on out of a free span that holds them; what is left over goes
// back. The span becomes that run, kLarge for the time being.
void CarveOut(Arena& arena, Span* span, uintptr_t start, size_t pages);

// All bytes of memory that the heap has: used, free and warm, maps and Spans. Needs the lock.
uint64_t FootprintBytes();

// Whether so many pages may get memory under the hard limit, after returning what is idle if that
// is needed: free spans may have merged. Needs the lock.
bool MayGrow(size_t pages);

// To be called when pages have got memory. Needs the lock.
void NoteGrowth();

// 0 when below, or without one. Needs the lock.
uint64_t BytesAboveSoftLimit();

// Returns free ranges of `shortest` bytes or more, the longest first, until it is `bytes`. Needs
// the lock, and keeps it: for the last resort only. The number of bytes returned.
uint64_t ReturnUnderLock(uint64_t bytes, size_t shortest);

// The same with return_lock held, and the lock only in between the system calls.
uint64_t ReturnLongest(uint64_t bytes, size_t shortest);

// What the policy wants back now that pages were given; 0 mostly. Needs the lock.
uint64_t ExcessBytes();

// Returns that, and makes the ages' step if it is due. Needs neither lock; may hold lower ones.
void Maintain(uint64_t excess_bytes);

}  // namespace pcmalloc::pages

#endif  // PCMALLOC_ALLOCATOR_PAGES_HEAP_H_
