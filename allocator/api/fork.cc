// SPDX-License-Identifier: Apache-2.0
#include "allocator/api/fork.h"

#include <pthread.h>

#include "allocator/base/report.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/pages/page_heap.h"
#include "percpu/slabs.h"

namespace pcmalloc {
namespace {

bool holds_page_heap = false;

void BeforeFork() {
  percpu::LockForFork();
  central::LockForFork();
  holds_page_heap = PageHeap::LockForFork();
}

void AfterFork() {
  if (holds_page_heap) PageHeap::UnlockAfterFork();
  central::UnlockAfterFork();
  percpu::UnlockAfterFork();
}

}  // namespace

void InstallForkHandlers() {
  // Registered first of all, so that it runs last before a fork and first after it: other handlers
  // may allocate.
  const int error = pthread_atfork(BeforeFork, AfterFork, AfterFork);
  if (error == 0) return;
  Text<> text;
  text.Str("fork handlers could not be installed (").ErrorName(error);
  text.Str("): a fork from a multi-threaded program may leave the child without memory");
  Warn(text);
}

}  // namespace pcmalloc
