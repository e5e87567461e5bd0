// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/heap.h"

#include "allocator/base/report.h"
#include "allocator/config/config.h"
#include "allocator/os/memory.h"
#include "allocator/os/thp.h"
#include "allocator/pages/huge_policy.h"

namespace pcmalloc::pages {

constinit Heap heap;
constinit HeapBounds bounds;

Arena& ArenaOf(const Span* span) {
  Arena* arena = Arenas::Find(span->start);
  PCMALLOC_CHECK(arena != nullptr);
  return *arena;
}

void MakeFree(Arena& arena, Span* span, uintptr_t start, size_t pages, Kind kind, bool begun) {
  span->start = start;
  span->pages = static_cast<uint32_t>(pages);
  span->state = SpanState::kFree;
  span->size_class = 0;
  span->returned = kind.returned;
  span->zeroed = kind.zeroed;
  span->maps_returned = false;
  span->begun = begun;
  arena.SetEnds(span);
  ListFor(kind).Insert(span);
}

Span* MakeFreeMerged(Arena& arena, Span* span, uintptr_t start, size_t pages, Kind kind,
                     bool begun) {
  const size_t page = arena.PageOf(start);
  if (page > arena.first_page()) {
    Span* left = arena.SpanAt(page - 1);
    if (left->state == SpanState::kFree && left->returned == kind.returned) {
      ListFor(KindOf(left)).Remove(left);
      kind.zeroed = kind.zeroed && left->zeroed;
      begun = left->begun;
      start = left->start;
      pages += left->pages;
      heap.store.Give(left);
    }
  }
  const size_t end = arena.PageOf(start) + pages;
  if (end < arena.used_pages()) {
    Span* right = arena.SpanAt(end);
    if (right->state == SpanState::kFree && right->returned == kind.returned) {
      ListFor(KindOf(right)).Remove(right);
      kind.zeroed = kind.zeroed && right->zeroed;
      pages += right->pages;
      heap.store.Give(right);
    }
  }
  MakeFree(arena, span, start, pages, kind, begun);
  return span;
}

uintptr_t PlaceFor(const Arena& arena, const Span* span, size_t pages) {
  if (span->begun || span->returned) return span->start;
  const uintptr_t last = span->end() - Bytes(pages);
  return arena.SpanAt(arena.PageOf(last)) != nullptr ? last : span->start;
}

Fill FillFor(size_t pages, unsigned size_class) {
  const ThpRequest request = GetConfig().thp;
  if (request == ThpRequest::kNever || heap.huge == Heap::Huge::kNo) return Fill::kPages;
  // Of a hugepage in use in part the rest would be there, to be handed out, and not be locked.
  if (os::WantsLocking()) return Fill::kPages;
  Fill fill = Fill::kPages;
  if (size_class != 0 && HugePolicy::Dense(pages, heap.class_pages[size_class])) {
    fill = Fill::kHuge;
  } else if (size_class == 0 && Bytes(pages) >= os::kHugePage) {
    fill = Fill::kWholeHuge;
  }
  if (fill == Fill::kPages) return fill;
  if (request == ThpRequest::kAuto) {
    const uint64_t bytes = Bytes(pages), used = UsedBytes() + bytes;
    const bool worthwhile = fill == Fill::kWholeHuge
                                ? HugePolicy::WorthwhileFor(bytes, used, Bytes(heap.small_pages))
                                : HugePolicy::Worthwhile(used);
    if (!worthwhile) return Fill::kPages;
  }
  if (heap.huge == Heap::Huge::kNotAsked) {
    heap.huge = os::FindHugePages() == os::HugePages::kNever ? Heap::Huge::kNo : Heap::Huge::kYes;
  }
  return heap.huge == Heap::Huge::kYes ? fill : Fill::kPages;
}

namespace {

struct Range {
  uintptr_t start;
  uintptr_t end;
};

constexpr uintptr_t kHuge = os::kHugePage;

// Asks for the hugepages of a range, or takes back what was asked for in better times. Refused:
// then their pages come one by one as before, or all at once as before.
void Ask(Arena& arena, uintptr_t first, uintptr_t last, bool huge) {
  for (uintptr_t at = first; at < last; at += kHuge) {
    const uintptr_t from = at;
    while (at < last && arena.huge(at) != huge) at += kHuge;
    if (at != from) (void)arena.WantHuge(from, at, huge);
  }
}

// Sees to the hugepages that `taken`, a part of a cold span, touches and that are cold altogether.
// Returns the range that will have memory.
Range Prepare(Arena& arena, const Span* span, Range taken, Fill fill) {
  uintptr_t first = taken.start & ~(kHuge - 1);
  uintptr_t last = (taken.end + kHuge - 1) & ~(kHuge - 1);
  if (first < span->start) first += kHuge;
  if (last > span->end()) last -= kHuge;
  if (first >= last || (fill == Fill::kPages && arena.huge_count() == 0)) return taken;
  if (fill == Fill::kWholeHuge) {
    // Those at the ends are shared with others, which may be many small blocks or never come.
    if (first < taken.start) {
      Ask(arena, first, first + kHuge, false);
      first += kHuge;
    }
    if (last > taken.end && last > first) {
      Ask(arena, last - kHuge, last, false);
      last -= kHuge;
    }
  }
  Ask(arena, first, last, fill != Fill::kPages);
  Range filled = taken;
  if (first < filled.start && arena.huge(first)) filled.start = first;
  if (last > filled.end && arena.huge(last - kHuge)) filled.end = last;
  return filled;
}

}  // namespace

void CarveOut(Arena& arena, Span* span, uintptr_t start, size_t pages, Fill fill) {
  const Kind kind = KindOf(span);
  const bool begun = span->begun;
  const Range free = {span->start, span->end()};
  const Range taken = {start, start + Bytes(pages)};
  ListFor(kind).Remove(span);

  // What gets memory by this, the pages of the kernel being what they are.
  Range filled = taken;
  Kind rest_kind = kFresh;
  if (kind.returned) {
    const uintptr_t unit = Bytes(PagesPerKernelPage());
    filled = {taken.start & ~(unit - 1), (taken.end + unit - 1) & ~(unit - 1)};
    if (unit == kPageSize) {
      filled = Prepare(arena, span, filled, fill);
    } else {
      rest_kind = kUsed;  // for whoever comes next
    }
  }

  span->start = taken.start;
  span->pages = static_cast<uint32_t>(pages);
  span->state = SpanState::kLarge;
  span->returned = false;
  arena.SetEnds(span);

  auto rest = [&arena](uintptr_t from, uintptr_t to, Kind what, bool merge,
                       bool was_begun = false) {
    if (from >= to) return;
    Span* const made = heap.store.Take();
    if (merge) {
      MakeFreeMerged(arena, made, from, (to - from) >> kPageShift, what);
    } else {
      MakeFree(arena, made, from, (to - from) >> kPageShift, what, was_begun);
    }
  };
  rest(free.start, filled.start, kind, false, begun);
  rest(filled.end, free.end, kind, false);
  if (kind.returned) {
    rest(filled.start, taken.start, rest_kind, true);
    rest(taken.end, filled.end, rest_kind, true);
  }
}

}  // namespace pcmalloc::pages
