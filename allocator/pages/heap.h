// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the state of the page heap and how pages move between its states, for the files that
//   make it up: page_heap.cc (what callers ask for) and return.cc (what the system gets back).
//
//      in use --Give--> warm --Returning--> cold --Take--> in use
//               Take <--/                    ^-- fresh from Arena::Grow
//
// Invariants: `lock` guards everything here. A cold span has no memory behind it, so it reads as
//   zero; of warm ones `zeroed` tells those that nobody wrote to. Cold spans begin and end on the
//   kernel's pages: where those are longer than ours, the rest of a kernel page that is taken in
//   part becomes warm, all zero. The same goes for hugepages: one that was asked for is cold
//   altogether or nowhere. `return_lock` is held while spans are kReturning, and
//   taken before `lock`.
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

// All zero at first, so that none of it lies in the file, and in the order in which a small process
// comes to use it.
struct Heap {
  RankedLock<LockRank::kReturn> return_lock;
  RankedLock<LockRank::kPages> lock;
  SpanStore store;
  uint64_t small_pages = 0;
  uint64_t large_pages = 0;
  uint32_t class_pages[256] = {};  // small_pages by size class
  uint64_t spans_in_use = 0;
  uint64_t releases = 0;
  uint64_t returning_pages = 0;  // in kReturning spans
  // Set when a pass of the policy found too little to return: no next one until so much is idle.
  uint64_t next_pass_bytes = 0;
  uint64_t grown = 0;               // bytes that got memory since growth was last made up for
  uint64_t idle_kept = 0;           // what decay leaves alone, because the program said so
  std::atomic<bool> helped{false};  // somebody calls Decay: slow paths need not look at the clock
  IdleClock idle_clock;             // of warm pages
  // Whether the kernel serves hugepages, once somebody asked.
  enum class Huge : uint8_t { kNotAsked, kYes, kNo } huge = Huge::kNotAsked;
  uint32_t huge_refusals = 0;  // how many requests still do without them
  // Of spans of small blocks: what lies inside of them and has no memory (PageHeap::ReturnInside).
  std::atomic<uint64_t> hole_bytes{0};
  FreeSpans cold;
  FreeSpans warm;   // was in use
  FreeSpans fresh;  // warm too, but nobody wrote to it: came in with a neighbour, in a hugepage
};
extern Heap heap;

// Apart, because it is not all zero.
struct HeapBounds {
  HeapLimits limits;
  IdleBound idle;
  uint64_t idle_limit = UINT64_MAX;  // at most so much, if the program said so
};
extern HeapBounds bounds;

constexpr uint64_t Bytes(uint64_t pages) { return pages << kPageShift; }
// Read without the lock.
inline void SetSmallPages(uint64_t pages) {
  __atomic_store_n(&heap.small_pages, pages, __ATOMIC_RELAXED);
}
inline void SetLargePages(uint64_t pages) {
  __atomic_store_n(&heap.large_pages, pages, __ATOMIC_RELAXED);
}
inline uint64_t UsedBytes() { return Bytes(heap.small_pages + heap.large_pages); }

inline uint64_t IdlePages() { return heap.warm.pages() + heap.fresh.pages(); }

// Of it, what the program has not asked to keep.
inline uint64_t DisposableBytes() {
  const uint64_t idle = Bytes(IdlePages());
  return idle > heap.idle_kept ? idle - heap.idle_kept : 0;
}

// What free pages are.
struct Kind {
  bool returned;
  bool zeroed;
};
inline constexpr Kind kCold = {true, true};
inline constexpr Kind kUsed = {false, false};
inline constexpr Kind kFresh = {false, true};
inline Kind KindOf(const Span* span) { return {span->returned, span->zeroed}; }

inline FreeSpans& ListFor(Kind kind) {
  return kind.returned ? heap.cold : kind.zeroed ? heap.fresh : heap.warm;
}

Arena& ArenaOf(const Span* span);

// To be called after warm pages were taken.
inline void NoteIdle() { heap.idle_clock.Note(IdlePages()); }

// Gives a span the pages, without looking at neighbours. `begun` as in Span.
void MakeFree(Arena& arena, Span* span, uintptr_t start, size_t pages, Kind kind,
              bool begun = false);

// The same, merged with free neighbours, cold with cold and warm with warm.
Span* MakeFreeMerged(Arena& arena, Span* span, uintptr_t start, size_t pages, Kind kind,
                     bool begun = false);

// Where in a free span a large block of so many pages begins: at either end. Many a large block is
// written to at its beginning only, so one that begins where another did costs no page fault and no
// memory. Of the span's start that is known (Span::begun), of the other place the span map may
// remember that something began or ended there.
uintptr_t PlaceFor(const Arena& arena, const Span* span, size_t pages);

// Most Span objects that CarveOut makes: a cold and a warm rest either side.
inline constexpr size_t kSpansPerCarve = 4;

// How cold memory is filled when a part of it is taken.
enum class Fill {
  kPages,      // page by page, as it is touched
  kWholeHuge,  // in hugepages as far as they lie inside the part
  kHuge,       // also those that it shares; their rest becomes fresh
};

// The way for a request that needs new memory.
Fill FillFor(size_t pages, unsigned size_class);

// Takes `pages` pages from `start` on out of a free span that holds them; what is left over goes
// back. The span becomes that run, kLarge for the time being. `fill` is for cold spans.
void CarveOut(Arena& arena, Span* span, uintptr_t start, size_t pages, Fill fill);

// What is to go back: `bytes` in ranges of `shortest` or more, the longest first; parts of
// hugepages, which lose their advantage by it, or only whole ones. May it be more, a range of 4 to
// 32 MiB that has lost more than half goes as a whole: who had it would not fit into the rest. (Not
// where the program has said what is to stay.)
struct Order {
  uint64_t bytes;
  size_t shortest;
  bool break_huge;
  bool may_be_more = false;
};

// Carries it out as far as possible. Needs the lock, and keeps it: for the last resort only. The
// number of bytes returned.
uint64_t ReturnUnderLock(const Order& order);

// The same with return_lock held, and the lock only in between the system calls.
uint64_t ReturnLongest(const Order& order);

// All bytes of memory that the heap has, holes included: used, free and warm, maps and Spans. Needs
// the lock.
uint64_t FootprintBytes();

// Whether so many pages may get memory under the hard limit, after returning what is idle if that
// is needed: free spans may have merged. Needs the lock.
bool MayGrow(size_t pages);

// The same for a hugepage, without an effort.
bool HugePageFits();

// To be called when pages have got memory. Needs the lock.
void NoteGrowth();

// 0 when below, or without one. Needs the lock.
uint64_t BytesAboveSoftLimit();

// Puts back what is kReturning, Spans' blocks included, in a fork's child whose parent was at it.
// Needs the lock.
void RecoverReturning();

// What the policy wants back now that pages were given, or got memory; 0 mostly. Needs the lock.
uint64_t ExcessBytes();
uint64_t GrowthExcess();

// Returns that, and makes the ages' step if it is due. Needs neither lock; may hold lower ones.
void Maintain(uint64_t excess_bytes);

}  // namespace pcmalloc::pages

#endif  // PCMALLOC_ALLOCATOR_PAGES_HEAP_H_
