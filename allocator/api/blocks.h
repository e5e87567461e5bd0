// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a block of any kind: made, measured, resized, taken back. What the entry points share
//   once the hit path has passed.
//
//      small      <= 256 KiB    a class, from the per-CPU slab           front/
//      large      above         a span of its own                        pages/page_heap.h
//      emergency  any           signal handler inside one of our locks   pages/emergency.h
//      boot       <= 4 MiB      before this library is relocated         boot.h
//
// Invariants: every pointer handed out is 16-aligned; freeing anything else than the start of a
//   live block ends the process with a message where it is noticed; errno is touched by failure
//   only.
// Cost: a page-map lookup to tell the kinds apart.
#ifndef PCMALLOC_ALLOCATOR_API_BLOCKS_H_
#define PCMALLOC_ALLOCATOR_API_BLOCKS_H_

#include <stddef.h>

namespace pcmalloc {

// Whether realloc leaves a small block where it is, `size` > 0. One that is half used stays: moving
// it would save less than it costs.
inline bool StaysInPlace(size_t block_size, size_t size) {
  return size <= block_size && (size >= block_size / 2 || block_size <= 64);
}

// A block of at least `size` bytes, whatever the hit path can or cannot do. Null: no memory (errno
// untouched).
void* TakeBlock(size_t size);

// The same at a multiple of `alignment` bytes, a power of two.
void* TakeAligned(size_t alignment, size_t size);

// The same as TakeBlock, all of it zero. Fresh pages are not written.
void* TakeZeroed(size_t size);

// Takes back anything that free() may get, null included.
void GiveBlock(void* p);

// The same for a block of a class, small or large, that is in use no more; a large one is marked so
// (central/large_blocks.h).
void GiveCached(unsigned size_class, void* p);

// Bytes of the block that the caller may use; 0 for null. Ends the process for a foreign pointer.
size_t BlockSize(const void* p);

// realloc for a live block and size > 0: in place where possible, else moved. Null: no memory, the
// old block is as it was.
void* ResizeBlock(void* p, size_t size);

// `moved` with the first `bytes` of `p`, which it replaces; null, and `p` is as it was, if
// there is none.
void* Replace(void* p, void* moved, size_t bytes);

// The alignment in a word of flags as mallocx takes it: its logarithm is in the lowest six bits.
inline size_t AlignmentOf(int flags) { return size_t{1} << (flags & 63); }

// Bytes that a request of `size` gets, aligned to a power of two, without getting it; 0 if it
// cannot be served at all.
size_t BlockSizeFor(size_t size, size_t alignment = 1);

// Returns free memory to the operating system, caches emptied first. Bytes returned.
size_t TrimBlocks(size_t keep_bytes);

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_BLOCKS_H_
