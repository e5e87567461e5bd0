// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/release.h"

#include "allocator/base/lock.h"
#include "allocator/os/clock.h"

namespace pcmalloc::release {

void Start() {
  ConfigureLimits();
  WatchForThreads();
}

void ResumeInChild() {
  ForgetWatchers();
  ForgetThread();
}

void TickSlow(bool may_start) {
  // A handler that interrupted the allocator could not get at the layers anyway.
  if (HoldsAnyLock()) return;
  if (PageHeap::TakeMark()) OnGrowth(os::CoarseMilliseconds());
  if (attention.load(std::memory_order_relaxed) != Attention::kNone) PayAttention(may_start);
}

}  // namespace pcmalloc::release
