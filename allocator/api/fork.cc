// SPDX-License-Identifier: Apache-2.0
#include "allocator/api/fork.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>

#include <atomic>

#include "absl/base/attributes.h"
#include "allocator/base/report.h"
#include "allocator/base/syscall.h"
#include "allocator/base/threads.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/os/memory.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/release.h"
#include "percpu/slabs.h"

namespace pcmalloc {
namespace {

// Of this thread, while it is between the handlers. There no signal handler runs: it might fork
// itself, and what it took and gave back would be what the fork that it interrupted relies on.
constinit thread_local uint64_t signal_mask = 0;

// The fork under way is that of a process with one thread: there is nobody whose locks the child
// would find taken for ever, and to take and release them all, on some twenty pages, would have as
// many copied by parent and child. What an interrupted frame of this thread holds goes on to be its
// own in both.
constinit std::atomic<bool> alone{false};

void SetSignalMask(const uint64_t* mask, uint64_t* before) {
  RawSyscall(SYS_rt_sigprocmask, SIG_SETMASK, mask, before, sizeof(*before));
}

void BeforeFork() {
  constexpr uint64_t kAll = ~uint64_t{0};
  uint64_t mask = 0;
  SetSignalMask(&kAll, &mask);
  signal_mask = mask;  // not before: a handler may still have come, and forked
  const bool now_alone = KnownThreads() == Threads::kOne;
  alone.store(now_alone, std::memory_order_relaxed);
  if (now_alone) return;
  percpu::LockForFork();
  central::LockForFork();
  (void)PageHeap::LockForFork();
}

void AfterFork(bool in_child) {
  if (!alone.load(std::memory_order_relaxed)) {
    PageHeap::UnlockAfterFork(in_child);
    central::UnlockAfterFork(in_child);
    percpu::UnlockAfterFork(in_child);
  }
  // Memory locks are not inherited.
  if (in_child && os::WantsLocking()) os::locking = os::Locking::kNone;
  const uint64_t mask = signal_mask;
  SetSignalMask(&mask, nullptr);
}

void AfterForkInParent() { AfterFork(false); }
void AfterForkInChild() {
  AfterFork(true);
  release::ResumeInChild();
}

ABSL_ATTRIBUTE_COLD ABSL_ATTRIBUTE_NOINLINE void Complain(int error) {
  Text<> text;
  text.Str("fork handlers could not be installed (").ErrorName(error);
  text.Str("): a fork from a multi-threaded program may leave the child without memory");
  Warn(text);
}

}  // namespace

void InstallForkHandlers() {
  // Registered first of all, so that it runs last before a fork and first after it: other handlers
  // may allocate.
  const int error = pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);
  if (error != 0) Complain(error);
}

}  // namespace pcmalloc
