// SPDX-License-Identifier: Apache-2.0
//
// The mechanism of the page heap. What is here decides how pages move between the states below,
// never when they go back to the operating system: release_policy.h does.
//
//      in use --Give--> warm --os::Return--> cold --Take--> in use
//               Take <--/                     ^-- fresh from Arena::Grow
//
// A cold span has no memory behind it, so it reads as zero and `returned` and `zeroed` are one
// thing for free spans. Cold spans begin and end on the kernel's pages: where those are longer than
// ours, the rest of a kernel page that is taken in part becomes warm.
#include "allocator/pages/page_heap.h"

#include <string.h>

#include "allocator/base/lock.h"
#include "allocator/base/report.h"
#include "allocator/os/memory.h"
#include "allocator/pages/arena.h"
#include "allocator/pages/free_spans.h"
#include "allocator/pages/page_map.h"
#include "allocator/pages/release_policy.h"
#include "allocator/pages/span_store.h"

namespace pcmalloc {
namespace {

// Arenas grow in proportion to what they have, so that the number of system calls stays logarithmic
// and a small process small.
constexpr size_t kSmallestGrowth = (size_t{1} << 20) >> kPageShift;
constexpr size_t kLargestGrowth = (size_t{64} << 20) >> kPageShift;
constexpr size_t kGrowthDivisor = 4;

// Most Span objects that one operation makes: the taken one, and a cold and a warm rest either
// side.
constexpr size_t kSpansPerTake = 5;
constexpr size_t kSpansPerReturn = 2;

// Refusals (locked memory, for one) after which a pass over the free memory gives up.
constexpr int kReturnRefusals = 16;

struct Heap {
  RankedLock<LockRank::kPages> lock;
  FreeSpans warm;
  FreeSpans cold;
  SpanStore store;
  uint64_t small_pages = 0;
  uint64_t large_pages = 0;
  uint64_t spans_in_use = 0;
  uint64_t releases = 0;
  // Set when a pass of the policy found too little to return: no next one until so much is idle.
  uint64_t next_pass_bytes = 0;
  uint64_t idle_limit = ReleasePolicy::kIdleBytes;
};
constinit Heap heap;

constexpr uint64_t Bytes(uint64_t pages) { return pages << kPageShift; }

// Read without the lock.
void SetSmallPages(uint64_t pages) { __atomic_store_n(&heap.small_pages, pages, __ATOMIC_RELAXED); }

Arena& ArenaOf(const Span* span) {
  Arena* arena = Arenas::Find(span->start);
  PCMALLOC_CHECK(arena != nullptr);
  return *arena;
}

FreeSpans& ListFor(bool returned) { return returned ? heap.cold : heap.warm; }

// Gives a span the pages, without looking at neighbours.
void MakeFree(Arena& arena, Span* span, uintptr_t start, size_t pages, bool returned) {
  span->start = start;
  span->pages = static_cast<uint32_t>(pages);
  span->state = SpanState::kFree;
  span->size_class = 0;
  span->returned = span->zeroed = returned;
  arena.SetEnds(span);
  ListFor(returned).Insert(span);
}

// The same, merged with free neighbours of its kind.
Span* MakeFreeMerged(Arena& arena, Span* span, uintptr_t start, size_t pages, bool returned) {
  const size_t page = arena.PageOf(start);
  if (page > arena.first_page()) {
    Span* left = arena.SpanAt(page - 1);
    if (left->state == SpanState::kFree && left->returned == returned) {
      ListFor(returned).Remove(left);
      start = left->start;
      pages += left->pages;
      heap.store.Give(left);
    }
  }
  const size_t end = arena.PageOf(start) + pages;
  if (end < arena.used_pages()) {
    Span* right = arena.SpanAt(end);
    if (right->state == SpanState::kFree && right->returned == returned) {
      ListFor(returned).Remove(right);
      pages += right->pages;
      heap.store.Give(right);
    }
  }
  MakeFree(arena, span, start, pages, returned);
  return span;
}

// Takes `pages` pages from `start` on out of a free span that holds them; what is left over goes
// back. The span becomes that run, kLarge for the time being.
void CarveOut(Arena& arena, Span* span, uintptr_t start, size_t pages) {
  const bool returned = span->returned;
  const uintptr_t span_start = span->start;
  const uintptr_t span_end = span->end();
  const uintptr_t end = start + Bytes(pages);
  ListFor(returned).Remove(span);

  // The kernel pages that get memory by this.
  uintptr_t hull_start = start;
  uintptr_t hull_end = end;
  if (returned) {
    const uintptr_t unit = Bytes(PagesPerKernelPage());
    hull_start = start & ~(unit - 1);
    hull_end = (end + unit - 1) & ~(unit - 1);
  }

  span->start = start;
  span->pages = static_cast<uint32_t>(pages);
  span->state = SpanState::kLarge;
  span->returned = false;
  arena.SetEnds(span);

  if (span_start < hull_start) {
    MakeFree(arena, heap.store.Take(), span_start, (hull_start - span_start) >> kPageShift,
             returned);
  }
  if (hull_end < span_end) {
    MakeFree(arena, heap.store.Take(), hull_end, (span_end - hull_end) >> kPageShift, returned);
  }
  if (hull_start < start) {
    MakeFreeMerged(arena, heap.store.Take(), hull_start, (start - hull_start) >> kPageShift, false);
  }
  if (end < hull_end) {
    MakeFreeMerged(arena, heap.store.Take(), end, (hull_end - end) >> kPageShift, false);
  }
}

// Makes an arena longer by at least `least` pages, in one cold span with a cold end. Uses one Span.
Span* Extend(Arena& arena, size_t least) {
  const size_t used = arena.used_pages();
  size_t step = (used - arena.first_page()) / kGrowthDivisor;
  if (step < kSmallestGrowth) step = kSmallestGrowth;
  if (step > kLargestGrowth) step = kLargestGrowth;
  const size_t pages = arena.Grow(least, least > step ? least : step);
  if (pages == 0) return nullptr;
  return MakeFreeMerged(arena, heap.store.Take(), arena.AddressOf(used), pages, true);
}

// The cold pages at the end of what the arena uses.
size_t ColdTail(const Arena& arena) {
  if (arena.used_pages() == arena.first_page()) return 0;
  const Span* last = arena.SpanAt(arena.used_pages() - 1);
  return last->state == SpanState::kFree && last->returned ? last->pages : 0;
}

// A cold span of at least `need` pages by growing an arena, the first one that has the room.
Span* GrowFor(size_t need) {
  if (Arenas::count() == 0 && Arenas::Create(need) == nullptr) return nullptr;
  bool refused = false;
  for (int i = 0; i < Arenas::count(); ++i) {
    Arena& arena = Arenas::at(i);
    if (arena.base() == 0) continue;
    const size_t tail = ColdTail(arena);
    if (tail >= need) return arena.SpanAt(arena.used_pages() - 1);  // Find lost patience before it
    if (arena.size_pages() - arena.used_pages() < need - tail) continue;
    if (Span* span = Extend(arena, need - tail)) return span;
    refused = true;
  }
  if (refused) return nullptr;  // memory, not room, is what is missing
  Arena* arena = Arenas::Create(need);
  if (arena == nullptr) return nullptr;
  Span* span = Extend(*arena, need);
  if (span == nullptr && !Arenas::primary(*arena)) Arenas::Retire(arena);
  return span;
}

// Returns as much of a warm span's memory as kernel pages allow. The rest stays warm. 0: refused,
// or the span holds no whole kernel page.
size_t ReturnSpan(Span* span, bool* refused) {
  const uintptr_t unit = Bytes(PagesPerKernelPage());
  const uintptr_t span_start = span->start;
  const uintptr_t span_end = span->end();
  const uintptr_t start = (span_start + unit - 1) & ~(unit - 1);
  const uintptr_t end = span_end & ~(unit - 1);
  if (start >= end) return 0;
  if (!heap.store.Reserve(kSpansPerReturn) ||
      !os::Return(reinterpret_cast<void*>(start), end - start)) {
    *refused = true;
    return 0;
  }
  ++heap.releases;
  Arena& arena = ArenaOf(span);
  heap.warm.Remove(span);
  if (span_start < start) {
    MakeFree(arena, heap.store.Take(), span_start, (start - span_start) >> kPageShift, false);
  }
  if (end < span_end) {
    MakeFree(arena, heap.store.Take(), end, (span_end - end) >> kPageShift, false);
  }
  MakeFreeMerged(arena, span, start, (end - start) >> kPageShift, true);
  return end - start;
}

// Returns free ranges of `shortest` bytes or more, the longest first, until it is `bytes`.
size_t ReturnLongest(uint64_t bytes, size_t shortest) {
  const int lowest_bin = FreeSpans::BinOf(shortest >> kPageShift);
  int refusals = 0;
  size_t returned = 0;
  for (int bin = heap.warm.HighestBin(); bin >= lowest_bin; bin = heap.warm.HighestBin(bin - 1)) {
    Span* next;
    for (Span* span = heap.warm.First(bin); span != nullptr; span = next) {
      next = span->next;  // stays warm: neither a warm span nor its rests have warm neighbours
      if (returned >= bytes) return returned;
      bool refused = false;
      returned += ReturnSpan(span, &refused);
      if (refused && ++refusals == kReturnRefusals) return returned;
    }
  }
  return returned;
}

void ApplyPolicy() {
  const uint64_t idle = Bytes(heap.warm.pages());
  if (idle < heap.next_pass_bytes) return;
  const uint64_t used = Bytes(heap.small_pages + heap.large_pages);
  const uint64_t target = ReleasePolicy::BytesToReturn(idle, used, heap.idle_limit);
  if (target == 0) return;
  const uint64_t returned = ReturnLongest(target, ReleasePolicy::kShortestRange);
  const uint64_t left = idle - returned;
  heap.next_pass_bytes =
      returned >= target ? 0 : left + ReleasePolicy::Bound(used, heap.idle_limit) / 4;
}

// Unmaps a further arena that holds nothing but free spans.
void RetireArena(Arena& arena) {
  for (size_t page = arena.first_page(); page < arena.used_pages();) {
    Span* span = arena.SpanAt(page);
    page += span->pages;
    ListFor(span->returned).Remove(span);
    heap.store.Give(span);
  }
  Arenas::Retire(&arena);
}

bool RetireEmptyArenas() {
  bool any = false;
  for (int i = 1; i < Arenas::count(); ++i) {
    Arena& arena = Arenas::at(i);
    if (arena.base() == 0 || arena.spans_in_use != 0) continue;
    RetireArena(arena);
    any = true;
  }
  return any;
}

// When neither free spans nor growth served a request: what costs too much otherwise.
Span* LastResort(size_t need) {
  if (Span* span = heap.warm.Find(need, FreeSpans::kUnlimited)) return span;
  if (Span* span = heap.cold.Find(need, FreeSpans::kUnlimited)) return span;
  bool changed = false;
  if (heap.warm.pages() != 0 && heap.warm.pages() + heap.cold.pages() >= need) {
    // Warm and cold neighbours are separate spans; when all is cold they are one.
    changed = ReturnLongest(UINT64_MAX, kPageSize) != 0;
    if (Span* span = heap.cold.Find(need, FreeSpans::kUnlimited)) return span;
  }
  if (RetireEmptyArenas()) changed = true;
  return changed && heap.store.Reserve(kSpansPerTake + 1) ? GrowFor(need) : nullptr;
}

Span* FindFree(size_t need) {
  if (Span* span = heap.warm.Find(need)) return span;
  return heap.cold.Find(need);
}

void SetSmall(Arena& arena, Span* span, unsigned size_class) {
  const size_t page = arena.PageOf(span->start);
  for (size_t i = 0; i < span->pages; ++i) arena.SetSpan(page + i, span);
  memset(arena.classes() + page, static_cast<int>(size_class), span->pages);
  span->state = SpanState::kSmall;
}

}  // namespace

PageResult PageHeap::Take(size_t pages, size_t alignment, unsigned size_class, Span** out) {
  const size_t align_pages = alignment >> kPageShift;
  if (pages > kMaxPages || align_pages > kMaxPages) return PageResult::kNoMemory;
  const size_t need = pages + align_pages - 1;
  if (pages == 0 || need > kMaxPages) return PageResult::kNoMemory;

  LockHolder held(heap.lock);
  if (!held) return PageResult::kReentrant;
  if (!heap.store.Reserve(kSpansPerTake + 1)) return PageResult::kNoMemory;
  Span* span = FindFree(need);
  if (span == nullptr) span = GrowFor(need);
  if (span == nullptr) span = LastResort(need);
  // The last resort uses and recycles Spans of its own.
  if (span == nullptr || !heap.store.Reserve(kSpansPerTake)) return PageResult::kNoMemory;

  Arena& arena = ArenaOf(span);
  CarveOut(arena, span, (span->start + alignment - 1) & ~(alignment - 1), pages);
  span->size_class = static_cast<uint8_t>(size_class);
  if (size_class != 0) {
    SetSmall(arena, span, size_class);
    SetSmallPages(heap.small_pages + pages);
  } else {
    heap.large_pages += pages;
  }
  ++arena.spans_in_use;
  ++heap.spans_in_use;
  *out = span;
  return PageResult::kOk;
}

PageResult PageHeap::Give(Span* span) {
  LockHolder held(heap.lock);
  if (!held) return PageResult::kReentrant;
  PCMALLOC_CHECK(span->state != SpanState::kFree && span->pages != 0);
  Arena& arena = ArenaOf(span);
  const size_t pages = span->pages;
  if (span->state == SpanState::kSmall) {
    memset(arena.classes() + arena.PageOf(span->start), 0, pages);
    SetSmallPages(heap.small_pages - pages);
  } else {
    heap.large_pages -= pages;
  }
  --arena.spans_in_use;
  --heap.spans_in_use;
  MakeFreeMerged(arena, span, span->start, pages, false);
  // An arena that one huge block was the reason for: where address space is limited, others need
  // it.
  if (arena.spans_in_use == 0 && !Arenas::primary(arena) &&
      pages >= (arena.used_pages() - arena.first_page()) / 2 &&
      os::AddressSpaceLimit() != SIZE_MAX) {
    RetireArena(arena);
  }
  ApplyPolicy();
  return PageResult::kOk;
}

PageResult PageHeap::Resize(Span* span, size_t pages) {
  if (pages == 0 || pages > kMaxPages) return PageResult::kNoMemory;
  LockHolder held(heap.lock);
  if (!held) return PageResult::kReentrant;
  PCMALLOC_CHECK(span->state == SpanState::kLarge);
  if (!heap.store.Reserve(kSpansPerTake + 1)) return PageResult::kNoMemory;
  Arena& arena = ArenaOf(span);
  const size_t old_pages = span->pages;
  if (pages != old_pages) span->size_class = 0;

  if (pages <= old_pages) {
    if (pages == old_pages) return PageResult::kOk;
    span->pages = static_cast<uint32_t>(pages);
    arena.SetEnds(span);
    heap.large_pages -= old_pages - pages;
    MakeFreeMerged(arena, heap.store.Take(), span->end(), old_pages - pages, false);
    ApplyPolicy();
    return PageResult::kOk;
  }

  size_t missing = pages - old_pages;
  size_t free_pages = 0;
  size_t page = arena.PageOf(span->end());
  while (free_pages < missing && page < arena.used_pages()) {
    const Span* next = arena.SpanAt(page);
    if (next->state != SpanState::kFree) return PageResult::kNoMemory;
    free_pages += next->pages;
    page += next->pages;
  }
  if (free_pages < missing && Extend(arena, missing - free_pages) == nullptr) {
    return PageResult::kNoMemory;
  }
  while (missing > 0) {
    Span* next = arena.SpanAt(arena.PageOf(span->end()));
    const size_t part = next->pages < missing ? next->pages : missing;
    CarveOut(arena, next, next->start, part);
    span->pages += static_cast<uint32_t>(part);
    missing -= part;
    heap.store.Give(next);
  }
  arena.SetEnds(span);
  heap.large_pages += pages - old_pages;
  return PageResult::kOk;
}

uint64_t PageHeap::SmallBytes() {
  return Bytes(__atomic_load_n(&heap.small_pages, __ATOMIC_RELAXED));
}

bool PageHeap::MovePages(const Span* from, const Span* to) {
  return os::Move(reinterpret_cast<void*>(from->start), reinterpret_cast<void*>(to->start),
                  from->bytes());
}

size_t PageHeap::Release(size_t bytes) {
  LockHolder held(heap.lock);
  if (!held) return 0;
  return ReturnLongest(bytes, kPageSize);
}

void PageHeap::OpenFastFree() {
  LockHolder held(heap.lock);
  PCMALLOC_CHECK(held);
  Arenas::OpenFastFree();
}

void PageHeap::SetIdleLimit(size_t bytes) {
  LockHolder held(heap.lock);
  if (held) heap.idle_limit = bytes;
}

PageStats PageHeap::Stats() {
  // If this thread holds the lock already, nobody else changes anything while it reads, and what it
  // interrupted is off by one operation at most.
  LockHolder held(heap.lock);
  PageStats stats = {};
  uint64_t maps = 0;
  for (int i = 0; i < Arenas::count(); ++i) {
    const Arena& arena = Arenas::at(i);
    if (arena.base() == 0) continue;
    stats.reserved_bytes += Bytes(arena.size_pages());
    stats.committed_bytes += Bytes(arena.used_pages() - arena.first_page());
    maps += arena.map_bytes();
  }
  stats.committed_bytes += maps;
  stats.free_bytes = Bytes(heap.warm.pages());
  stats.returned_bytes = Bytes(heap.cold.pages());
  stats.small_bytes = Bytes(heap.small_pages);
  stats.large_bytes = Bytes(heap.large_pages);
  stats.metadata_bytes = maps + heap.store.bytes();
  stats.spans = heap.spans_in_use;
  stats.releases = heap.releases;
  return stats;
}

bool PageHeap::LockForFork() { return heap.lock.AcquireForFork(); }

void PageHeap::UnlockAfterFork(bool in_child) { heap.lock.ReleaseAfterFork(in_child); }

}  // namespace pcmalloc
