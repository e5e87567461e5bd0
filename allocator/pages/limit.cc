// SPDX-License-Identifier: Apache-2.0
//
// How much memory the page heap may have: the checks where it is about to have more, and the mark
// that tells the layers above of growth.
#include "allocator/pages/heap.h"
#include "allocator/pages/page_heap.h"

namespace pcmalloc::pages {

// With holes: they get memory again without asking, so that the hard limit must count them.
uint64_t FootprintBytes() {
  uint64_t maps = 0;
  for (int i = 0; i < Arenas::count(); ++i) {
    const Arena& arena = Arenas::at(i);
    if (arena.base() != 0) maps += arena.map_bytes();
  }
  return UsedBytes() + maps + heap.store.bytes() + Bytes(IdlePages() + heap.returning_pages);
}

namespace {

// Without them: what there is now, which is what the soft limit and the mark are about.
uint64_t ResidentBytes() {
  return FootprintBytes() - heap.hole_bytes.load(std::memory_order_relaxed);
}

// What growth by so many pages may cost: besides them steps of both maps, and a chunk of Spans.
uint64_t BytesWithBooks(size_t pages) {
  constexpr uint64_t kBooks = uint64_t{256} << 10;
  return Bytes(pages) + pages * (sizeof(Span*) + 1) + kBooks + heap.store.bytes() / 8;
}

}  // namespace

bool MayGrow(size_t pages) {
  const uint64_t limit = bounds.limits.hard.load(std::memory_order_relaxed);
  if (__builtin_expect(limit == UINT64_MAX, 1)) return true;
  const uint64_t bytes = BytesWithBooks(pages);
  if (bytes > limit) return false;
  if (FootprintBytes() <= limit - bytes) return true;
  ReturnUnderLock({UINT64_MAX, kPageSize, true});
  return FootprintBytes() <= limit - bytes;
}

bool HugePageFits() {
  const uint64_t limit = bounds.limits.hard.load(std::memory_order_relaxed);
  return limit == UINT64_MAX ||
         FootprintBytes() + BytesWithBooks(os::kHugePage >> kPageShift) <= limit;
}

void NoteGrowth() {
  const uint64_t mark = bounds.limits.mark.load(std::memory_order_relaxed);
  if (__builtin_expect(mark != UINT64_MAX && ResidentBytes() > mark, 0)) {
    bounds.limits.mark.store(UINT64_MAX, std::memory_order_relaxed);
    bounds.limits.mark_passed.store(true, std::memory_order_relaxed);
  }
}

uint64_t BytesAboveSoftLimit() {
  const uint64_t limit = bounds.limits.soft.load(std::memory_order_relaxed);
  if (__builtin_expect(limit == UINT64_MAX, 1)) return 0;
  const uint64_t footprint = ResidentBytes();
  return footprint > limit ? footprint - limit : 0;
}

}  // namespace pcmalloc::pages

namespace pcmalloc {

using pages::bounds;
using pages::heap;

void PageHeap::SetLimits(uint64_t soft, uint64_t hard) {
  bounds.limits.soft.store(soft, std::memory_order_relaxed);
  bounds.limits.hard.store(hard, std::memory_order_relaxed);
}

void PageHeap::SetMark(uint64_t bytes) {
  bounds.limits.mark_passed.store(false, std::memory_order_relaxed);
  bounds.limits.mark.store(bytes, std::memory_order_relaxed);
}

bool PageHeap::MarkPassed() { return bounds.limits.mark_passed.load(std::memory_order_relaxed); }

bool PageHeap::TakeMark() {
  return MarkPassed() && bounds.limits.mark_passed.exchange(false, std::memory_order_relaxed);
}

uint64_t PageHeap::Footprint() {
  // As for Stats: who holds the lock already reads what it interrupted.
  LockHolder held(heap.lock);
  return pages::ResidentBytes();
}

size_t PageHeap::ReleaseIdle() {
  uint64_t bytes;
  {
    LockHolder held(heap.lock);
    if (!held) return 0;
    bytes = pages::DisposableBytes();
  }
  // In parts: a fork waits for the end of one.
  constexpr uint64_t kPart = uint64_t{64} << 20;
  size_t returned = 0;
  while (returned < bytes) {
    const size_t part = Release(bytes - returned < kPart ? bytes - returned : kPart);
    if (part == 0) break;
    returned += part;
  }
  return returned;
}

}  // namespace pcmalloc
