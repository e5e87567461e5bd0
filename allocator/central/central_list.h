// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the free objects of one size class that no cache holds, kept as bitmaps in the spans
//   they belong to; spans are taken from and given back to the page heap here.
//
//      lists[0]  spans with the fewest free objects  Take starts here, so that the others empty out
//        ...
//      lists[7]  spans that are nearly all free      an all-free span goes back to the page heap
//      (a span without a free object is in no list)
//
//   Parts of spans where all objects are free may be without memory (holes.h, sweep.h). While such
//   memory is being returned its span is away: in no list, so that nothing is taken from it.
//
// Invariants: an object's bit is set exactly while it is here; setting a bit that is set is a
//   double free and ends the process. Freed memory itself is never written or read.
// Cost: one lock a batch; to take, seven instructions for four objects where all of a word's are
//   here, nine an object where some are not; to give, about four in a run of neighbours, about
//   forty apart. A span changes its list at the counts where it has to, one comparison otherwise.
#ifndef PCMALLOC_ALLOCATOR_CENTRAL_CENTRAL_LIST_H_
#define PCMALLOC_ALLOCATOR_CENTRAL_CENTRAL_LIST_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/base/list.h"
#include "allocator/base/lock.h"
#include "allocator/pages/span.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc {

// Why fewer objects came than were asked for.
enum class Shortage : uint8_t {
  kNone,
  kNoMemory,
  kReentrant,  // this thread holds a needed lock further up its stack (signal handler)
};

// Who wants to know for how long memory has been idle.
enum class IdleWatcher : uint8_t { kAge, kExcess };

class CentralList {
 public:
  constexpr CentralList() = default;

  // Takes up to `n` objects, those of one span in descending order of address, so that a stack they
  // are pushed on gives them out in ascending order; fewer only with a reason in *shortage.
  // Async-signal-safe.
  uint32_t Take(unsigned size_class, void** out, uint32_t n, Shortage* shortage);

  // Gives objects of the class back; returns how many were taken, fewer than `n` only when
  // re-entrant. An object that no span of this class holds, or that is free already, ends the
  // process with a message.
  uint32_t Give(unsigned size_class, void* const* in, uint32_t n);

  // For the sweep (sweep.h), which found a span of this class; by now it may be none any more.
  // Bytes of it, in runs of at least `shortest`, that could do without their memory.
  uint64_t Returnable(unsigned size_class, const Span* span, size_t shortest);
  // If there are any, takes the span out of reach of Take and says which (holes.h).
  bool Detach(unsigned size_class, Span* span, size_t shortest, uint64_t* units);
  // Puts it back; the memory of `holes` was returned.
  void Attach(Span* span, uint64_t holes);
  // The same in the child of a fork, if that has this list's lock: else the span stays away for
  // good. None was returned, or nobody knows.
  void Recover(Span* span);

  // Bytes of free objects of all lists that have memory: what is idle here. While others are at it
  // it may be off by what they do.
  static uint64_t IdleBytes();
  // The least that it was since the last such call for this purpose. One caller at a time.
  static uint64_t TakeLeastIdleBytes(IdleWatcher watcher);
  // Bytes of objects taken, and of holes that were used again, so far.
  static uint64_t TakenBytes();
  static uint64_t RefilledBytes();

  // Whether the block is free here already; for messages about misuse only.
  static bool IsFree(const Span* span, const void* p);

  // `heap_held`: the calling thread, in a handler, holds the page heap's lock further up its stack.
  bool LockForFork(bool heap_held) {
    return lock_.AcquireForFork(heap_held ? ForkPatience::kUnlessAtRest : ForkPatience::kSome);
  }
  void UnlockAfterFork(bool in_child) { lock_.ReleaseAfterFork(in_child); }

  uint64_t spans() const { return __atomic_load_n(&spans_, __ATOMIC_RELAXED); }
  uint64_t free_objects() const { return __atomic_load_n(&free_objects_, __ATOMIC_RELAXED); }

 private:
  static constexpr unsigned kLists = 8;

  static constexpr uint32_t kNoList = kLists;
  static constexpr uint32_t kNever = ~uint32_t{0};  // for Span::relist_at, while it is away

  static uint32_t ListFor(const Span& span);
  void Insert(Span* span);
  void Remove(Span* span);
  bool Grow(unsigned size_class, Shortage* shortage);
  // For a span with `relist_at` free objects. One that is all free is put on `emptied`: returns how
  // many objects leave the list with it.
  uint32_t Relist(Span* span, Span** emptied);
  // Gives the run of neighbours that begins with in[0]; returns how many they are.
  uint32_t GiveRun(unsigned size_class, void* const* in, uint32_t n, Span** emptied,
                   int64_t* leaving);
  uint32_t Leave(Span* span, Span** emptied);
  void GiveToHeap(Span* emptied);
  void BookFree(int64_t objects, int64_t size);
  static uint64_t UnitsToReturn(unsigned size_class, const Span* span, size_t shortest);
  static void Refill(Span* span, void* const* objects, uint32_t n);
  static void FillHoles(Span* span, uint64_t units);

  RankedLock<LockRank::kCentral> lock_;
  List<Span> lists_[kLists];
  uint64_t spans_ = 0;
  uint64_t free_objects_ = 0;
};

namespace central {

// Index: the size class; 0 is not used.
extern CentralList lists[kNumClasses];

}  // namespace central
}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_CENTRAL_CENTRAL_LIST_H_
