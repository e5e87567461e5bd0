// SPDX-License-Identifier: Apache-2.0
//
// Purpose: decides when new memory is asked for in hugepages.
//
//   A hugepage costs a tenth of what its 512 pages cost one by one, and all of its 2 MiB are
//   resident from the first touch on. What is in it and not in use is the price, at most one
//   hugepage's worth at the growing end of the heap.
//
// Invariants: a pure function of the numbers passed in.
// Cost: a few instructions.
#ifndef PCMALLOC_ALLOCATOR_PAGES_HUGE_POLICY_H_
#define PCMALLOC_ALLOCATOR_PAGES_HUGE_POLICY_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/os/thp.h"

namespace pcmalloc {

struct HugePolicy {
  // Spans of small blocks are filled one after the other, so those of a class that has many are
  // full but for the last. In longer ones, of blocks above 8 KiB, a few may be all that is ever
  // used, and each of those but in part: buffers of 16 KiB that receive some hundred bytes.
  static constexpr size_t kLongestDense = 8;
  static constexpr uint64_t kManySpans = 16;
  static constexpr bool Dense(size_t pages, uint64_t class_pages) {
    return pages <= kLongestDense && class_pages >= kManySpans * pages;
  }

  // From this size of the heap on the hugepage at its end, half of which is in use on
  // average, weighs little.
  static constexpr uint64_t kSmallestHeap = 4 * os::kHugePage;

  // `used` is what is in use together with the request that needs new memory.
  static constexpr bool Worthwhile(uint64_t used) { return used >= kSmallestHeap; }

  // Of a block of some hugepages nobody knows how much will be touched: a program may reserve
  // buffers for each thread. Many of them make a heap large that hardly is. So it takes a heap that
  // is large by its small blocks, or a block that is so large itself that it will be the data.
  static constexpr uint64_t kSmallestForBlocks = 8 * os::kHugePage;
  static constexpr uint64_t kLargestReserve = 16 * os::kHugePage;
  static constexpr bool WorthwhileFor(uint64_t block, uint64_t used, uint64_t small) {
    return block >= kLargestReserve || (used >= kSmallestForBlocks && small >= kSmallestHeap);
  }

  // How much of what has been idle for long, in hugepages that are in use in part, is too much, so
  // that the emptiest of these are to be broken up.
  static constexpr uint64_t BytesToBreak(uint64_t idle, uint64_t used) {
    const uint64_t bound = used / 16 > 2 * os::kHugePage ? used / 16 : 2 * os::kHugePage;
    return idle <= bound ? 0 : idle - bound / 2;
  }
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_HUGE_POLICY_H_
