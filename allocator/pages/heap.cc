// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/heap.h"

#include "allocator/base/report.h"

namespace pcmalloc::pages {

constinit Heap heap;

Arena& ArenaOf(const Span* span) {
  Arena* arena = Arenas::Find(span->start);
  PCMALLOC_CHECK(arena != nullptr);
  return *arena;
}

void MakeFree(Arena& arena, Span* span, uintptr_t start, size_t pages, bool returned) {
  span->start = start;
  span->pages = static_cast<uint32_t>(pages);
  span->state = SpanState::kFree;
  span->size_class = 0;
  span->returned = span->zeroed = returned;
  arena.SetEnds(span);
  ListFor(returned).Insert(span);
}

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

}  // namespace pcmalloc::pages
