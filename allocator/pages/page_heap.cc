// SPDX-License-Identifier: Apache-2.0
//
// What callers ask of the page heap: pages taken, given back, resized; growth, and the last resort
// when the kernel refuses it. How pages change their state is in heap.cc, how they go back to the
// system in return.cc, when in release_policy.h.
#include "allocator/pages/page_heap.h"

#include <string.h>

#include "allocator/base/report.h"
#include "allocator/base/round.h"
#include "allocator/os/memory.h"
#include "allocator/os/move.h"
#include "allocator/pages/arena.h"
#include "allocator/pages/heap.h"

namespace pcmalloc {

using pages::ArenaOf;
using pages::bounds;
using pages::Bytes;
using pages::CarveOut;
using pages::Fill;
using pages::heap;
using pages::ListFor;
using pages::MakeFreeMerged;

namespace {

// Arenas grow in proportion to what they have, so that the number of system calls stays logarithmic
// and a small process small.
constexpr size_t kSmallestGrowth = (size_t{1} << 20) >> kPageShift;
constexpr size_t kLargestGrowth = (size_t{64} << 20) >> kPageShift;
constexpr size_t kGrowthDivisor = 4;

// Most Span objects that one operation makes.
constexpr size_t kSpansPerTake = pages::kSpansPerCarve + 1;

// Makes an arena longer by at least `least` pages, in one cold span with a cold end. Uses one Span.
Span* Extend(Arena& arena, size_t least) {
  const size_t used = arena.used_pages();
  size_t step = (used - arena.first_page()) / kGrowthDivisor;
  if (step < kSmallestGrowth) step = kSmallestGrowth;
  if (step > kLargestGrowth) step = kLargestGrowth;
  const size_t pages = arena.Grow(least, least > step ? least : step);
  if (pages == 0) return nullptr;
  return MakeFreeMerged(arena, heap.store.Take(), arena.AddressOf(used), pages, pages::kCold);
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

// Unmaps a further arena that holds nothing but free spans.
void RetireArena(Arena& arena) {
  for (size_t page = arena.first_page(); page < arena.used_pages();) {
    Span* span = arena.SpanAt(page);
    page += span->pages;
    ListFor(pages::KindOf(span)).Remove(span);
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
  if (Span* span = heap.fresh.Find(need, FreeSpans::kUnlimited)) return span;
  bool changed = false;
  if (pages::IdlePages() != 0 && pages::IdlePages() + heap.cold.pages() >= need) {
    // Warm and cold neighbours are separate spans; when all is cold they are one.
    changed = pages::ReturnUnderLock({UINT64_MAX, kPageSize, true}) != 0;
    if (Span* span = heap.cold.Find(need, FreeSpans::kUnlimited)) return span;
  }
  if (RetireEmptyArenas()) changed = true;
  return changed && heap.store.Reserve(kSpansPerTake + 1) ? GrowFor(need) : nullptr;
}

constexpr size_t kHugePages = os::kHugePage >> kPageShift;
// Contains a hugepage wherever it begins.
constexpr size_t kSurelyHuge = 2 * kHugePages - 1;

// After a refusal of the larger growth that hugepages need, so many requests do without, since a
// refusal costs a dozen system calls.
constexpr uint32_t kHugeRefusals = 1024;

// Cold pages enough for whole hugepages; null if the heap would have to grow and cannot.
Span* FindColdForHuge(size_t pages) {
  if (Span* span = heap.cold.Find(pages)) return span;
  if (heap.huge_refusals > 0) {
    --heap.huge_refusals;
    return nullptr;
  }
  Span* span = GrowFor(pages);
  if (span == nullptr) heap.huge_refusals = kHugeRefusals;
  return span;
}

// Pages without memory for a request, new ones if need be. *alignment becomes larger where memory
// is to come in hugepages.
Span* FindCold(size_t pages, Fill fill, size_t* alignment) {
  if (fill != Fill::kPages) {
    if (Span* span = FindColdForHuge(fill == Fill::kHuge ? kSurelyHuge : pages + kHugePages - 1)) {
      *alignment = os::kHugePage;
      return span;
    }
  }
  if (Span* span = heap.cold.FindAligned(pages, *alignment)) return span;
  return GrowFor(PagesToAlign(pages, *alignment));
}

// The free pages behind a span, `missing` of them at most.
struct FreeBehind {
  size_t pages = 0;
  size_t warm = 0;       // of them
  bool blocked = false;  // then come pages in use
};

FreeBehind LookBehind(const Arena& arena, const Span* span, size_t missing) {
  FreeBehind behind;
  size_t page = arena.PageOf(span->end());
  while (behind.pages < missing && page < arena.used_pages()) {
    const Span* const next = arena.SpanAt(page);
    if (next->state != SpanState::kFree) {
      behind.blocked = true;
      break;
    }
    const size_t part = next->pages < missing - behind.pages ? next->pages : missing - behind.pages;
    if (!next->returned) behind.warm += part;
    behind.pages += part;
    page += next->pages;
  }
  return behind;
}

// Shorter blocks have their warm span mostly; and how much of a longer one should be warm.
constexpr size_t kShortestInRun = (size_t{128} << 10) >> kPageShift;
constexpr size_t kWarmDivisor = 8;

// Warm spans that are too short by themselves, but not together with the free ones, cold mostly,
// beside them. Such a block costs page faults for a part of it only, and what is idle becomes less
// instead of what is used more. Returns the run's first span; the block begins in it, at *start.
Span* FindRun(size_t pages, uintptr_t* start) {
  if (pages < kShortestInRun) return nullptr;
  int patience = FreeSpans::kPatience;
  const int lowest_bin = FreeSpans::BinOf(pages / kWarmDivisor);
  for (int bin = heap.warm.HighestBin(FreeSpans::BinOf(pages)); bin >= lowest_bin;
       bin = heap.warm.HighestBin(bin - 1)) {
    for (Span* warm = heap.warm.First(bin); warm != nullptr; warm = warm->next) {
      if (patience-- == 0) return nullptr;
      const Arena& arena = ArenaOf(warm);
      size_t from = arena.PageOf(warm->start);
      const size_t missing = pages > warm->pages ? pages - warm->pages : 0;
      const size_t to = from + warm->pages + LookBehind(arena, warm, missing).pages;
      Span* first = warm;
      while (to - from < pages && from > arena.first_page()) {
        Span* const left = arena.SpanAt(from - 1);
        if (left->state != SpanState::kFree) break;
        from -= left->pages;
        first = left;
      }
      if (to - from < pages) continue;
      *start = first == warm ? warm->start : arena.AddressOf(to - pages);
      return first;
    }
  }
  return nullptr;
}

// Makes a span in use `pages` long with the free ones behind it. Returns how many pages that adds
// without memory.
size_t Append(Arena& arena, Span* span, size_t pages, Fill fill) {
  size_t cold = 0;
  while (span->pages < pages) {
    Span* const next = arena.SpanAt(arena.PageOf(span->end()));
    const size_t missing = pages - span->pages;
    const size_t part = next->pages < missing ? next->pages : missing;
    if (next->returned) cold += part;
    span->zeroed = span->zeroed && next->zeroed;
    CarveOut(arena, next, next->start, part, fill);
    span->pages += static_cast<uint32_t>(part);
    heap.store.Give(next);
  }
  arena.SetEnds(span);
  return cold;
}

void SetSmall(Arena& arena, Span* span, unsigned size_class) {
  const size_t page = arena.PageOf(span->start);
  for (size_t i = 0; i < span->pages; ++i) arena.SetSpan(page + i, span);
  memset(arena.classes() + page, static_cast<int>(size_class), span->pages);
  span->state = SpanState::kSmall;
}

// Take, without regard to what other threads are returning just now. *missed: there was some; it is
// read under the lock, since a moment after it the same memory may lie there again, cold.
PageResult TakeOnce(size_t pages, size_t alignment, unsigned size_class, size_t room, Span** out,
                    uint64_t* excess, bool* missed) {
  if (pages > kMaxPages || alignment >> kPageShift > kMaxPages) return PageResult::kNoMemory;
  const size_t need = PagesToAlign(pages, alignment);
  if (pages == 0 || need > kMaxPages) return PageResult::kNoMemory;
  if (room > kMaxPages - need) room = 0;

  LockHolder held(heap.lock);
  if (!held) return PageResult::kReentrant;
  *missed = heap.returning_pages != 0;
  if (!heap.store.Reserve(kSpansPerTake + 1)) return PageResult::kNoMemory;
  Fill fill = alignment <= os::kHugePage ? pages::FillFor(pages, size_class) : Fill::kPages;
  const bool plain = size_class == 0 && alignment == kPageSize && room == 0;
  uintptr_t start = 0;  // 0: by the span's bounds
  Span* span = room == 0 ? nullptr : heap.warm.Find(need + room);
  if (span == nullptr) span = heap.warm.FindAligned(pages, alignment);
  if (span == nullptr && fill == Fill::kHuge) span = heap.fresh.Find(need);
  if (span == nullptr) {
    if (!pages::MayGrow(pages) || !heap.store.Reserve(kSpansPerTake + 1)) {
      return PageResult::kNoMemory;
    }
    if (fill == Fill::kHuge && !pages::HugePageFits()) fill = Fill::kPages;
    if (room != 0 && fill == Fill::kPages) span = heap.cold.Find(need + room);
    if (plain && fill == Fill::kPages) span = FindRun(pages, &start);
    if (span == nullptr) span = FindCold(pages, fill, &alignment);
  }
  if (span == nullptr) span = LastResort(need);
  // The last resort uses and recycles Spans of its own.
  if (span == nullptr || !heap.store.Reserve(kSpansPerTake)) return PageResult::kNoMemory;

  Arena& arena = ArenaOf(span);
  if (start == 0) {
    start = plain && alignment == kPageSize ? pages::PlaceFor(arena, span, pages)
                                            : RoundUp(span->start, alignment);
  }
  // Whoever asked for a block writes to it next.
  if (size_class == 0 && !span->returned) {
    __builtin_prefetch(reinterpret_cast<void*>(start), /*rw=*/1);
  }
  const size_t to_end = (span->end() - start) >> kPageShift;
  const size_t here = to_end < pages ? to_end : pages;
  // Before anything has changed. What is warm, too, is cheaper than to look which part is not.
  if ((span->returned || here < pages) &&
      !os::LockForUse(reinterpret_cast<void*>(start), Bytes(pages))) {
    return PageResult::kNoMemory;
  }
  size_t cold = span->returned ? here : 0;
  CarveOut(arena, span, start, here, fill);
  if (here < pages) cold += Append(arena, span, pages, fill);
  span->size_class = static_cast<uint8_t>(size_class);
  if (size_class != 0) {
    SetSmall(arena, span, size_class);
    pages::SetSmallPages(heap.small_pages + pages);
    heap.class_pages[size_class] += static_cast<uint32_t>(pages);
  } else {
    pages::SetLargePages(heap.large_pages + pages);
  }
  ++arena.spans_in_use;
  ++heap.spans_in_use;
  pages::NoteIdle();
  if (cold != 0) {
    heap.grown += Bytes(cold);
    bounds.idle.Taken(Bytes(cold), pages::UsedBytes());
    pages::NoteGrowth();
  }
  if (size_class == 0) *excess = pages::GrowthExcess();
  *out = span;
  return PageResult::kOk;
}

}  // namespace

PageResult PageHeap::Take(size_t pages, size_t alignment, unsigned size_class, Span** out,
                          size_t room) {
  uint64_t excess = 0;
  bool missed = false;
  PageResult result = TakeOnce(pages, alignment, size_class, room, out, &excess, &missed);
  if (__builtin_expect(result == PageResult::kNoMemory, 0) && missed) {
    // What is missing may be on its way to the system, whence it could be taken again.
    LockHolder all_returned(heap.return_lock);
    if (!all_returned) return PageResult::kReentrant;
    result = TakeOnce(pages, alignment, size_class, room, out, &excess, &missed);
  }
  if (__builtin_expect(result == PageResult::kNoMemory, 0) && os::WantsLocking()) {
    // What is idle may be what fills the limit on locked memory.
    if (Release(SIZE_MAX) != 0) {
      result = TakeOnce(pages, alignment, size_class, room, out, &excess, &missed);
    }
  }
  // Spans of small objects are taken under the lock of their class, which is to be held briefly;
  // the clock is for those who give.
  if (size_class == 0 && excess != 0) pages::Maintain(excess);
  return result;
}

void PageHeap::ExpectGive(const Span* span) {
  if (Arenas::count() == 0) return;
  const Arena& arena = Arenas::at(0);
  const size_t page = arena.PageOf(span->start);
  const size_t end = page + span->pages;
  // Neither holds in another arena. Entries before the first page have no memory.
  if (page <= arena.first_page() || end >= arena.mapped_pages()) return;
  __builtin_prefetch(arena.SpanAt(page - 1));
  __builtin_prefetch(arena.SpanAt(end));
}

PageResult PageHeap::Give(Span* span) {
  uint64_t excess;
  {
    LockHolder held(heap.lock);
    if (!held) return PageResult::kReentrant;
    PCMALLOC_CHECK(span->in_use() && span->pages != 0);
    Arena& arena = ArenaOf(span);
    const size_t pages = span->pages;
    if (span->state == SpanState::kSmall) {
      memset(arena.classes() + arena.PageOf(span->start), 0, pages);
      pages::SetSmallPages(heap.small_pages - pages);
      heap.class_pages[span->size_class] -= static_cast<uint32_t>(pages);
    } else {
      pages::SetLargePages(heap.large_pages - pages);
    }
    --arena.spans_in_use;
    --heap.spans_in_use;
    MakeFreeMerged(arena, span, span->start, pages, pages::kUsed, /*begun=*/true);
    // An arena that one huge block was the reason for: where address space is limited, others need
    // it.
    if (arena.spans_in_use == 0 && !Arenas::primary(arena) &&
        pages >= (arena.used_pages() - arena.first_page()) / 2 &&
        os::AddressSpaceLimit() != SIZE_MAX) {
      RetireArena(arena);
      pages::NoteIdle();
    }
    excess = pages::ExcessBytes();
    if (excess == 0) excess = pages::GrowthExcess();
  }
  pages::Maintain(excess);
  return PageResult::kOk;
}

namespace {

PageResult ResizeOnce(Span* span, size_t pages, uint64_t* excess) {
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
    pages::SetLargePages(heap.large_pages - (old_pages - pages));
    MakeFreeMerged(arena, heap.store.Take(), span->end(), old_pages - pages, pages::kUsed);
    *excess = pages::ExcessBytes();
    return PageResult::kOk;
  }

  const size_t missing = pages - old_pages;
  FreeBehind behind = LookBehind(arena, span, missing);
  if (behind.blocked) return PageResult::kNoMemory;
  if (behind.warm < missing) {
    // What goes to the system for it may be what was warm here, and then has to be asked for, too.
    size_t warm;
    do {
      warm = behind.warm;
      if (!pages::MayGrow(missing - warm)) return PageResult::kNoMemory;
      behind = LookBehind(arena, span, missing);
    } while (behind.warm < warm);
    if (!heap.store.Reserve(kSpansPerTake + 1)) return PageResult::kNoMemory;
  }
  if (behind.pages < missing && Extend(arena, missing - behind.pages) == nullptr) {
    return PageResult::kNoMemory;
  }
  if (behind.warm < missing &&
      !os::LockForUse(reinterpret_cast<void*>(span->end()), Bytes(missing))) {
    return PageResult::kNoMemory;
  }
  Append(arena, span, pages, pages::FillFor(pages, 0));
  pages::SetLargePages(heap.large_pages + (pages - old_pages));
  pages::NoteIdle();
  pages::NoteGrowth();
  return PageResult::kOk;
}

}  // namespace

PageResult PageHeap::Resize(Span* span, size_t pages) {
  uint64_t excess = 0;
  const PageResult result = ResizeOnce(span, pages, &excess);
  if (result == PageResult::kOk) pages::Maintain(excess);
  return result;
}

uint64_t PageHeap::SmallBytes() {
  return Bytes(__atomic_load_n(&heap.small_pages, __ATOMIC_RELAXED));
}

uint64_t PageHeap::UsedBytes() {
  return SmallBytes() + Bytes(__atomic_load_n(&heap.large_pages, __ATOMIC_RELAXED));
}

bool PageHeap::MovePages(const Span* from, const Span* to) {
  // What is left of the place that was locked would not be: neither locked nor there, and counted
  // as warm.
  if (os::WantsLocking()) return false;
  if (!os::Move(reinterpret_cast<void*>(from->start), reinterpret_cast<void*>(to->start),
                from->bytes())) {
    return false;
  }
  // Whether hugepages are wanted is a property of the mapping and came along with it.
  const Arena& arena = ArenaOf(to);
  const uintptr_t end = (to->start + from->bytes()) & ~(os::kHugePage - 1);
  for (uintptr_t at = (to->start + os::kHugePage - 1) & ~(os::kHugePage - 1); at < end;) {
    const uintptr_t start = at;
    const bool huge = arena.huge(start);
    while (at < end && arena.huge(at) == huge) at += os::kHugePage;
    (void)os::WantHuge(reinterpret_cast<void*>(start), at - start, huge);
  }
  return true;
}

void PageHeap::OpenFastFree() {
  LockHolder held(heap.lock);
  PCMALLOC_CHECK(held);
  Arenas::OpenFastFree();
}

void PageHeap::SetIdleLimit(size_t bytes) {
  LockHolder held(heap.lock);
  if (held) bounds.idle_limit = heap.idle_kept = bytes;
}

void PageHeap::FitAddressSpace() {
  LockHolder held(heap.lock);
  if (held) (void)Arenas::FitAddressSpace();
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
    stats.reserved_bytes += arena.reserved_bytes();
    stats.committed_bytes += Bytes(arena.used_pages() - arena.first_page());
    maps += arena.map_bytes();
  }
  stats.committed_bytes += maps;
  stats.free_bytes = Bytes(pages::IdlePages() + heap.returning_pages);
  stats.returned_bytes = Bytes(heap.cold.pages());
  stats.small_bytes = Bytes(heap.small_pages);
  stats.large_bytes = Bytes(heap.large_pages);
  stats.metadata_bytes = maps + heap.store.bytes();
  stats.spans = heap.spans_in_use;
  stats.releases = heap.releases;
  stats.hole_bytes = heap.hole_bytes.load(std::memory_order_relaxed);
  return stats;
}

bool PageHeap::HeldBySelf() { return heap.lock.HeldBySelf(); }

bool PageHeap::LockForFork() { return heap.lock.AcquireForFork(); }

void PageHeap::UnlockAfterFork(bool in_child) {
  // Who was returning memory is not there, unless it is this very thread, in a signal handler.
  if (in_child && !heap.return_lock.HeldBySelf()) {
    if (heap.lock.HeldForFork()) pages::RecoverReturning();
    heap.return_lock.FreeInChild();
  }
  heap.lock.ReleaseAfterFork(in_child);
}

}  // namespace pcmalloc
