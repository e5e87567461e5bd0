// SPDX-License-Identifier: Apache-2.0
//
// Purpose: counts how many operations on small blocks the sections served, in the build that tests
//   read hit rates from (//:libpcmalloc-counted.so). In the shipped library it compiles to nothing.
// Invariants: none of it is on the hit path unless PCMALLOC_COUNTED is defined.
// Cost: an atomic addition an operation in the counted build.
#ifndef PCMALLOC_ALLOCATOR_API_COUNTED_H_
#define PCMALLOC_ALLOCATOR_API_COUNTED_H_

#include <stdint.h>

#include <atomic>

namespace pcmalloc {

#ifdef PCMALLOC_COUNTED
inline constexpr bool kCountOperations = true;
#else
inline constexpr bool kCountOperations = false;
#endif

struct OperationCounts {
  std::atomic<uint64_t> fast{0};  // served by a section
  std::atomic<uint64_t> slow{0};  // small, but not served by a section
};
extern OperationCounts operation_counts;

inline void CountFast() { operation_counts.fast.fetch_add(1, std::memory_order_relaxed); }
inline void CountSlow() {
  if (kCountOperations) operation_counts.slow.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_COUNTED_H_
