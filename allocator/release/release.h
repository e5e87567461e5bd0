// SPDX-License-Identifier: Apache-2.0
//
// Purpose: return of memory without the application's help, and limits: what the layers above call.
// Invariants: see background.h, maintenance.h, limits.h.
// Cost: two loads on a slow path.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_RELEASE_H_
#define PCMALLOC_ALLOCATOR_RELEASE_RELEASE_H_

#include "absl/base/optimization.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/background.h"
#include "allocator/release/limits.h"
#include "allocator/release/maintenance.h"

namespace pcmalloc::release {

// Once, when the configuration is known.
void Start();

// In the child of a fork, when all locks are free again.
void ResumeInChild();

void TickSlow(bool may_start);

// On every slow path of malloc and of free, before it takes a lock. No thread is started in free:
// the C library calls it under a lock that pthread_create needs (the cache of stacks, glibc).
inline void Tick(bool may_start) {
  if (ABSL_PREDICT_FALSE(attention.load(std::memory_order_relaxed) != Attention::kNone ||
                         PageHeap::MarkPassed())) {
    TickSlow(may_start);
  }
}

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_RELEASE_H_
