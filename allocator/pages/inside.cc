// SPDX-License-Identifier: Apache-2.0
//
// What the layer above needs to return memory that lies inside of spans in use.
#include "allocator/os/memory.h"
#include "allocator/pages/arena.h"
#include "allocator/pages/heap.h"
#include "allocator/pages/page_heap.h"

namespace pcmalloc {

using pages::heap;

namespace {

static_assert(Stretch::kBytes == os::kHugePage);

// Pages or spans passed by in one go, with the lock held.
constexpr size_t kMostPassed = 256;

constexpr uintptr_t StretchOf(uintptr_t address) { return address & ~(Stretch::kBytes - 1); }

// The first arena, in order of address, that ends above `from`; null if there is none.
const Arena* ArenaFrom(uintptr_t from) {
  const Arena* best = nullptr;
  for (int i = 0; i < Arenas::count(); ++i) {
    const Arena& arena = Arenas::at(i);
    if (arena.base() == 0 || arena.AddressOf(arena.used_pages()) <= from) continue;
    if (best == nullptr || arena.base() < best->base()) best = &arena;
  }
  return best;
}

// The span that holds the address, or the next one that a page up to `end` is sure of: inside of a
// long span the map has entries of earlier times, or none.
Span* SpanFrom(const Arena& arena, size_t page, size_t end) {
  for (; page < end; ++page) {
    Span* span = arena.SpanAt(page);
    const uintptr_t at = arena.AddressOf(page);
    if (span != nullptr && span->start <= at && at < span->end()) return span;
  }
  return nullptr;
}

}  // namespace

bool PageHeap::Next(Stretch* stretch) {
  stretch->count = 0;
  LockHolder held(heap.lock);
  if (!held) return false;
  const Arena* arena = ArenaFrom(stretch->from);
  if (arena == nullptr) return false;
  const size_t first = arena->first_page();
  const size_t page =
      stretch->from < arena->AddressOf(first) ? first : arena->PageOf(stretch->from);
  const size_t end =
      page + kMostPassed < arena->used_pages() ? page + kMostPassed : arena->used_pages();
  Span* span = SpanFrom(*arena, page, end);
  stretch->from = arena->AddressOf(end);
  uintptr_t begin = 0;
  for (size_t passed = 0; span != nullptr && passed < kMostPassed; ++passed) {
    if (span->state == SpanState::kSmall) {
      if (stretch->count == 0) {
        begin = StretchOf(span->start);
        stretch->huge = arena->huge(span->start);
      }
      if (StretchOf(span->start) != begin) break;
      stretch->spans[stretch->count] = span;
      stretch->size_classes[stretch->count++] = span->size_class;
    }
    stretch->from = span->end();
    const size_t next = arena->PageOf(span->end());
    span = next < arena->used_pages() ? arena->SpanAt(next) : nullptr;
  }
  return true;
}

bool PageHeap::ReturnInside(uintptr_t start, size_t bytes) {
  {
    LockHolder held(heap.lock);
    if (!held) return false;
    // A refusal only means that the kernel may make a hugepage of it again.
    Arena* const arena = Arenas::Find(start);
    const uintptr_t end = start + bytes;
    for (uintptr_t huge = StretchOf(start); huge < end; huge += Stretch::kBytes) {
      if (arena->huge(huge)) (void)arena->WantHuge(huge, huge + Stretch::kBytes, false);
    }
    ++heap.releases;
  }
  return os::Return(reinterpret_cast<void*>(start), bytes);
}

void PageHeap::NoteHoles(int64_t bytes) {
  heap.hole_bytes.fetch_add(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
}

uint64_t PageHeap::HoleBytes() { return heap.hole_bytes.load(std::memory_order_relaxed); }

}  // namespace pcmalloc
