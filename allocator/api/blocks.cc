// SPDX-License-Identifier: Apache-2.0
#include "allocator/api/blocks.h"

#include <stdint.h>
#include <string.h>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "allocator/api/boot.h"
#include "allocator/api/coarse.h"
#include "allocator/api/counted.h"
#include "allocator/api/hot.h"
#include "allocator/api/init.h"
#include "allocator/base/report.h"
#include "allocator/base/syscall.h"
#include "allocator/central/large_blocks.h"
#include "allocator/central/sweep.h"
#include "allocator/front/deferred.h"
#include "allocator/front/front.h"
#include "allocator/os/zero.h"
#include "allocator/pages/arena.h"
#include "allocator/pages/emergency.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"
#include "allocator/release/release.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc {
namespace {

// A large block shrinks in place by giving back its tail if that is worth a lock.
constexpr size_t kWorthCutting = 4 * kPageSize;

// A block that grows from here on will do so again: it becomes a span of its own that has room
// behind it. Such a span costs three visits to the page heap, less than copying the block once.
constexpr size_t kGrowsInPlace = size_t{32} << 10;
constexpr size_t kMostRoom = size_t{64} << 20;
// Moving the mappings costs less than copying from here on, with the page faults that follow it.
constexpr size_t kMovedByKernel = size_t{8} << 20;

size_t PagesFor(size_t size) { return (size + kPageSize - 1) / kPageSize; }

// A span of its own. `zeroed` says whether the caller may skip clearing it.
void* TakeLarge(size_t alignment, size_t size, bool* zeroed) {
  if (size > PTRDIFF_MAX || alignment > PTRDIFF_MAX) return nullptr;
  Span* span;
  switch (PageHeap::Take(PagesFor(size == 0 ? 1 : size),
                         alignment < kPageSize ? kPageSize : alignment, 0, &span)) {
    case PageResult::kOk:
      *zeroed = span->zeroed;
      return reinterpret_cast<void*>(span->start);
    case PageResult::kReentrant:
      *zeroed = false;
      return EmergencyTake(size, alignment);
    case PageResult::kNoMemory:
      break;
  }
  return nullptr;
}

void* TakeCached(unsigned size_class) {
  CountSlow();
  void* p = front::Allocate(size_class);
  if (size_class >= kNumClasses && p != nullptr) central::MarkTaken(p);
  return p;
}

void* TakeOnce(size_t size) {
  if (size <= kMaxCachedSize) return TakeCached(SizeClassOf(size));
  bool zeroed;
  return TakeLarge(kMinAlignment, size, &zeroed);
}

// What every request passes. When the kernel refuses, blocks that lie in caches may still help, in
// spans that become whole.
template <typename TakeFn>
void* TakeOrTrim(size_t size, TakeFn take) {
  release::Tick(/*may_start=*/true);
  if (ABSL_PREDICT_FALSE(front::HasDeferred())) front::FlushDeferred(GiveBlock);
  void* p = take();
  if (ABSL_PREDICT_TRUE(p != nullptr) || size > PTRDIFF_MAX) return p;
  front::Trim();
  return take();
}

[[noreturn]] void FatalPointer(const char* what, const void* p, const char* why) {
  Text<> text;
  text.Str(what).Str(" of ").Ptr(p).Str(": ").Str(why);
  Fatal(text);
}

// The live large block that starts at p, or a message and the end.
Span* LargeSpan(const char* what, const void* p) {
  Span* span = SpanOf(p);
  if (span == nullptr) FatalPointer(what, p, "the address was not allocated by this allocator");
  if (!span->in_use()) {
    FatalPointer(what, p, "the memory is free already (double free, or a stale pointer)");
  }
  if (span->start != reinterpret_cast<uintptr_t>(p)) {
    FatalPointer(what, p, "the address points into a block, not to its start");
  }
  return span;
}

// What TakeBlock does, by the hit paths first: for callers that have not tried them. Not inlined:
// each copy of a critical section costs every process a descriptor to relocate at its start.
ABSL_ATTRIBUTE_NOINLINE void* TakeQuickly(size_t size) {
  void* p = IsCoarse(size) ? PopCoarse(size) : PopAny(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : TakeBlock(size);
}

void* Moved(void* p, size_t old_size, size_t size) {
  return Replace(p, TakeQuickly(size), old_size < size ? old_size : size);
}

// A block for the contents of one that grows.
void* TakeToGrow(size_t size) {
  const size_t room = PagesFor(size < kMostRoom ? size : kMostRoom);
  return TakeOrTrim(size, [=]() -> void* {
    Span* span;
    if (PageHeap::Take(PagesFor(size), kPageSize, 0, &span, room) != PageResult::kOk) {
      return TakeOnce(size);
    }
    return reinterpret_cast<void*>(span->start);
  });
}

void* Grown(void* p, size_t old_size, size_t size) {
  return Replace(p, TakeToGrow(size), old_size);
}

void* ResizeLarge(Span* span, size_t size) {
  void* p = reinterpret_cast<void*>(span->start);
  const size_t pages = PagesFor(size);
  if (size > kGrowsInPlace) {
    if (pages <= span->pages) {
      if ((span->pages - pages) * kPageSize >= kWorthCutting) PageHeap::Resize(span, pages);
      return p;
    }
    if (PageHeap::Resize(span, pages) == PageResult::kOk) return p;
    if (span->bytes() < kMovedByKernel) return Grown(p, span->bytes(), size);
    void* moved = TakeToGrow(size);
    if (moved == nullptr) return nullptr;
    const Span* to = SpanOf(moved);
    if (to == nullptr || !PageHeap::MovePages(span, to)) memcpy(moved, p, span->bytes());
    GiveBlock(p);
    return moved;
  }
  void* moved = Moved(p, span->bytes(), size);
  // Shrinking cannot fail: the old block serves as well.
  return moved == nullptr && size <= span->bytes() ? p : moved;
}

}  // namespace

ABSL_ATTRIBUTE_NOINLINE void* Replace(void* p, void* moved, size_t bytes) {  // as TakeQuickly
  if (moved == nullptr) return nullptr;
  memcpy(moved, p, bytes);
  Free(p);
  return moved;
}

void* TakeBlock(size_t size) {
  if (ABSL_PREDICT_FALSE(!Relocated())) return BootTake(size, kMinAlignment);
  Initialize();
  return TakeOrTrim(size, [=] { return TakeOnce(size); });
}

void* TakeAligned(size_t alignment, size_t size) {
  if (ABSL_PREDICT_FALSE(!Relocated())) return BootTake(size, alignment);
  Initialize();
  if (alignment <= kPageSize && size <= kMaxCachedSize - kPageSize) {
    return TakeQuickly(AlignedSize(alignment, size));  // large blocks start on pages
  }
  bool zeroed;
  return TakeOrTrim(size, [&] { return TakeLarge(alignment, size, &zeroed); });
}

void* TakeZeroed(size_t size) {
  if (size <= kMaxSmallSize || ABSL_PREDICT_FALSE(!Relocated())) {
    void* p = TakeQuickly(size);
    // What boot memory hands out has never been used.
    if (p != nullptr && !BootOwns(p)) memset(p, 0, size);
    return p;
  }
  Initialize();
  bool zeroed = false;
  void* p;
  if (size <= kMaxCachedSize) {
    p = TakeQuickly(size);
    const Span* span = p == nullptr ? nullptr : SpanOf(p);
    zeroed = span != nullptr && span->zeroed;
  } else {
    p = TakeOrTrim(size, [&] { return TakeLarge(kMinAlignment, size, &zeroed); });
  }
  if (p != nullptr && !zeroed) os::Zero(p, size);
  return p;
}

void GiveBlock(void* p) {
  if (p == nullptr || ABSL_PREDICT_FALSE(BootOwns(p))) return;
  const unsigned size_class = ClassOf(p);
  if (size_class != 0) return GiveCached(size_class, p);
  if (ABSL_PREDICT_FALSE(EmergencyOwns(p))) {
    EmergencyGive(p);
    return;
  }
  release::Tick(/*may_start=*/false);
  Span* span = LargeSpan("free", p);
  if (PageHeap::Give(span) == PageResult::kReentrant) front::Defer(p);
}

void GiveCached(unsigned size_class, void* p) {
  CountSlow();
  release::Tick(/*may_start=*/false);
  front::Deallocate(size_class, p);
}

size_t BlockSize(const void* p) {
  if (p == nullptr) return 0;
  if (ABSL_PREDICT_FALSE(BootOwns(p))) return BootSize(p);
  const unsigned size_class = ClassOf(p);
  if (size_class != 0) return kClasses[size_class].size;
  if (EmergencyOwns(p)) return EmergencySize(p);
  return LargeSpan("malloc_usable_size", p)->bytes();
}

void* ResizeBlock(void* p, size_t size) {
  // Rounded up to pages such a size could come out small.
  if (ABSL_PREDICT_FALSE(size > PTRDIFF_MAX)) return nullptr;
  unsigned size_class = PrimaryClassOf(p);
  if (ABSL_PREDICT_FALSE(size_class == 0)) {
    if (BootOwns(p) || !Relocated()) {
      void* moved = TakeBlock(size);
      if (moved != nullptr) BootCopy(moved, p, BootSize(p) < size ? BootSize(p) : size);
      return moved;
    }
    size_class = ClassOf(p);
  }
  if (size_class == 0) {
    if (EmergencyOwns(p)) {
      const size_t old_size = EmergencySize(p);
      return size <= old_size ? p : Moved(p, old_size, size);
    }
    return ResizeLarge(LargeSpan("realloc", p), size);
  }
  const size_t old_size = kClasses[size_class].size;
  if (StaysInPlace(old_size, size)) return p;
  if (size > old_size && old_size >= kGrowsInPlace) return Grown(p, old_size, size);
  void* moved = Moved(p, old_size, size);
  // Shrinking cannot fail: the old block serves as well.
  return moved == nullptr && size <= old_size ? p : moved;
}

size_t BlockSizeFor(size_t size, size_t alignment) {
  if (alignment <= kPageSize && size <= kMaxCachedSize) {
    if (alignment > kMinAlignment && size <= kMaxCachedSize - kPageSize) {
      size = AlignedSize(alignment, size);
    }
    return ClassSize(SizeClassOf(size));
  }
  if (size > PTRDIFF_MAX || alignment > kMaxPages << kPageShift) return 0;
  const size_t pages = PagesFor(size == 0 ? 1 : size);
  const size_t room = alignment <= kPageSize ? pages : PagesToAlign(pages, alignment);
  return room <= kMaxPages ? pages * kPageSize : 0;
}

size_t TrimBlocks(size_t keep_bytes) {
  if (front::HasDeferred()) front::FlushDeferred(GiveBlock);
  front::Trim();
  const size_t free_bytes = PageHeap::Stats().free_bytes;
  const size_t whole = free_bytes > keep_bytes ? PageHeap::Release(free_bytes - keep_bytes) : 0;
  return whole + central::ReturnHoles();
}

}  // namespace pcmalloc
