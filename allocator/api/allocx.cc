// SPDX-License-Identifier: Apache-2.0
//
// The rest of the functions whose last argument is a word of flags. Of that family, C++ libraries
// ask for nallocx and sdallocx alone (malloc.cc), and programs that were built with jemalloc for
// all: were some missing here, such a program would free by one allocator what the other gave out.
//
// Of the flags, alignment and zeroing count; arenas and thread caches are jemalloc's own. Size 0
// has no meaning in these functions, here it is the smallest block.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "allocator/api/blocks.h"
#include "allocator/api/exports.h"
#include "allocator/api/hot.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc {
namespace {

constexpr int kZero = 0x40;

void* Take(size_t size, int flags) {
  const size_t alignment = AlignmentOf(flags);
  if (alignment > kMinAlignment) {
    void* p = TakeAligned(alignment, size);
    // To the block's end, which rallocx relies on.
    if (p != nullptr && (flags & kZero) != 0) memset(p, 0, BlockSize(p));
    return p;
  }
  if ((flags & kZero) == 0) return Malloc(size);
  const size_t whole = BlockSizeFor(size);
  return whole == 0 ? nullptr : TakeZeroed(whole);
}

void* Resize(void* p, size_t size, int flags) {
  const size_t alignment = AlignmentOf(flags);
  const size_t before = BlockSize(p);
  const size_t kept = size < before ? size : before;
  if (reinterpret_cast<uintptr_t>(p) % alignment == 0 && StaysInPlace(before, size)) return p;
  void* const moved = alignment <= kMinAlignment ? ResizeBlock(p, size)
                                                 : Replace(p, TakeAligned(alignment, size), kept);
  if (moved == nullptr || (flags & kZero) == 0) return moved;
  // To the new block's end, for the next time.
  memset(static_cast<char*>(moved) + kept, 0, BlockSize(moved) - kept);
  return moved;
}

}  // namespace
}  // namespace pcmalloc

extern "C" {

PCM_EXPORT void* mallocx(size_t size, int flags) {
  return pcmalloc::Take(size == 0 ? 1 : size, flags);
}

PCM_EXPORT void* rallocx(void* p, size_t size, int flags) {
  return pcmalloc::Resize(p, size == 0 ? 1 : size, flags);
}

// Would resize where the block lies: it stays as large as it is, which is an answer.
PCM_EXPORT size_t xallocx(void* p, size_t, size_t, int) { return pcmalloc::BlockSize(p); }

PCM_EXPORT size_t sallocx(const void* p, int) { return pcmalloc::BlockSize(p); }

PCM_EXPORT void dallocx(void* p, int) { pcmalloc::Free(p); }

}  // extern "C"
