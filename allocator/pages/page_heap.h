// SPDX-License-Identifier: Apache-2.0
//
// Purpose: hands out runs of pages and takes them back, merges neighbours, returns whole free
//   ranges to the operating system.
// Invariants: one lock guards all of it; no function waits for a lock that the calling thread holds
//   already (kReentrant instead); free neighbours are always merged unless one is returned and the
//   other is not; a page's map entries are right whenever no lock is held.
//   No lock that Take or Give need is held during the system calls that return memory, but for the
//   last resort and for map entries.
// Cost: constant time to take and give; a system call only to grow an arena or to return memory.
#ifndef PCMALLOC_ALLOCATOR_PAGES_PAGE_HEAP_H_
#define PCMALLOC_ALLOCATOR_PAGES_PAGE_HEAP_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/pages/span.h"

namespace pcmalloc {

enum class PageResult {
  kOk,
  kNoMemory,   // the kernel or a limit refused
  kReentrant,  // a signal handler interrupted this thread inside the page heap
};

struct PageStats {
  uint64_t reserved_bytes;   // address space of all arenas
  uint64_t committed_bytes;  // of it, made accessible, maps included
  uint64_t free_bytes;       // free spans still backed by memory
  uint64_t returned_bytes;   // free spans given back to the operating system
  uint64_t small_bytes;      // in kSmall spans
  uint64_t large_bytes;      // in kLarge spans
  uint64_t metadata_bytes;   // Span objects and maps, committed
  uint64_t spans;            // in use, small and large
  uint64_t releases;         // system calls that returned memory
  uint64_t hole_bytes;       // of small_bytes, returned to the operating system
};

// Spans of small blocks that lie together, see PageHeap::Next.
struct Stretch {
  static constexpr size_t kBytes = size_t{2} << 20;
  uintptr_t from = 0;  // where the search goes on; 0 is the beginning
  bool huge = false;   // it is one hugepage, as far as it was asked for
  unsigned count = 0;
  Span* spans[kBytes >> kPageShift] = {};
  uint8_t size_classes[kBytes >> kPageShift] = {};
};

class PageHeap {
 public:
  // Takes `pages` pages whose first byte is a multiple of `alignment` bytes (a power of two,
  // >= kPageSize). The span comes out as kSmall with `size_class` in every page-map entry when that
  // is not 0, else as kLarge. `span->zeroed` says whether the caller may skip clearing it.
  // Where there is a choice, `room` more pages behind it are free, for Resize.
  // Thread-safe; async-signal-safe (see kReentrant).
  static PageResult Take(size_t pages, size_t alignment, unsigned size_class, Span** span,
                         size_t room = 0);

  // Gives a span back. kReentrant leaves it untouched: the caller must try again later.
  static PageResult Give(Span* span);

  // Fetches the neighbours' Spans, which Give looks at: for whoever has something else to do until
  // then. Among many spans neither they nor their map entries are in the cache.
  static void ExpectGive(const Span* span);

  // Makes a kLarge span longer or shorter where it is. Growing fails with kNoMemory when the pages
  // behind it are in use; pages cut off go back to the heap. Shrinking fails, and changes nothing,
  // only if a Span object is needed and refused.
  static PageResult Resize(Span* span, size_t pages);

  // Moves the contents of a kLarge span to another of at least its length by moving page tables
  // (mremap with MREMAP_DONTUNMAP); false where the kernel cannot: then copy. `from` stays
  // allocated with undefined contents.
  // Moved pages are mappings of their own to the kernel: for blocks of some MiB and more.
  static bool MovePages(const Span* from, const Span* to);

  // Returns at least `bytes` of free memory to the operating system, the longest ranges first, as
  // far as there are any; returns the number of bytes returned. 0 in a signal handler that
  // interrupted another return.
  static size_t Release(size_t bytes);

  // Returns what has been idle for long, along a curve that ends at PCMALLOC_CONF's `decay`. To be
  // called by whoever has time, with the milliseconds of os::CoarseMilliseconds(); a call that
  // comes too early does nothing. Returns after how many milliseconds the next call makes sense;
  // UINT64_MAX if none ever will. The page heap itself does the same on its slow paths.
  static uint64_t Decay(uint64_t now_ms);

  // Whether somebody calls Decay from now on, so that slow paths can do without the clock.
  static void SetHelped(bool helped);

  // Decay with the present time, and almost free unless something is due: for slow paths of the
  // layers above. The caller may hold locks of lower ranks, but others may have to wait for them.
  static void Tick();

  // Returns all free memory but what SetIdleLimit lets stay; returns the number of bytes.
  static size_t ReleaseIdle();

  // For a sweep over all spans of small blocks in the order of their addresses: those that begin in
  // some stretch of at most kBytes, from `from` on, which moves behind it. They may be other spans
  // by the time they are looked at, but Span objects stay readable. False at the end of the heap,
  // in a signal handler inside the page heap too.
  static bool Next(Stretch* stretch);

  // Returns the memory of free blocks inside of a kSmall span, a range of whole kernel pages. The
  // caller, whose span it is, keeps them from being used meanwhile, and says by NoteHoles how many
  // bytes inside of such spans have no memory: more or, when blocks are used again, fewer. False:
  // refused by the kernel, or in a signal handler.
  static bool ReturnInside(uintptr_t start, size_t bytes);
  static void NoteHoles(int64_t bytes);
  static uint64_t HoleBytes();

  // Limits on the footprint; UINT64_MAX for none. Above `soft` free memory goes back to the system
  // as soon as it is free. What would pass `hard`, when nothing idle is left, is refused with
  // kNoMemory. Neither takes anything away; see ReleaseIdle.
  static void SetLimits(uint64_t soft, uint64_t hard);

  // Blocks in use, whatever they are cached in, free memory not returned yet, maps and Spans.
  static uint64_t Footprint();

  // A footprint above `bytes` makes MarkPassed true, once, until it is set anew. TakeMark says true
  // to one caller. Async-signal-safe.
  static void SetMark(uint64_t bytes);
  static bool MarkPassed();
  static bool TakeMark();

  // Lets the inline path of free use the page map from now on (pcmalloc_primary_arena.fast_pages).
  static void OpenFastFree();

  // How much free memory may stay resident whatever the heap's size (mallopt's M_TRIM_THRESHOLD).
  static void SetIdleLimit(size_t bytes);

  // After RLIMIT_AS has changed: gives up what is reserved beyond what a process under such a limit
  // would have. The page heap does the same when it is refused address space itself, but until then
  // the program's own mmaps fail. Async-signal-safe.
  static void FitAddressSpace();

  static PageStats Stats();

  // Bytes in kSmall spans, without the lock: what the caches above measure themselves by.
  static uint64_t SmallBytes();

  // The same with large blocks, cached ones included.
  static uint64_t UsedBytes();

  // fork: the child's copy must not be taken in the middle of a change. Prepare is re-entrant in
  // the sense of Lock: if the calling thread holds the lock already, it returns false and
  // UnlockAfterFork does nothing.
  static bool LockForFork();
  // Whether the calling thread holds the lock: a signal handler that interrupted the page heap.
  static bool HeldBySelf();
  static void UnlockAfterFork(bool in_child = false);
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_PAGE_HEAP_H_
