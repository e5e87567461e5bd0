// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/deferred.h"

#include <atomic>

#include "absl/base/optimization.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/front/locality.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc::front {
namespace {

constinit std::atomic<void*> head{nullptr};
constinit std::atomic<uint64_t> deferred{0};

void** LinkOf(void* block) { return static_cast<void**>(block); }

}  // namespace

void Return(unsigned size_class, void* const* items, uint32_t n) {
  if (n == 0) return;
  // Large classes have no shards, and to find the near one costs as much as a lock.
  const unsigned shard = size_class < kNumClasses ? NearShard() : 0;
  for (uint32_t given = central::Give(size_class, items, n, shard); ABSL_PREDICT_FALSE(given < n);
       ++given) {
    Defer(items[given]);
  }
}

void Defer(void* p) {
  deferred.fetch_add(1, std::memory_order_relaxed);
  void* next = head.load(std::memory_order_relaxed);
  do {
    *LinkOf(p) = next;
  } while (
      !head.compare_exchange_weak(next, p, std::memory_order_release, std::memory_order_relaxed));
}

bool HasDeferred() { return head.load(std::memory_order_relaxed) != nullptr; }

// Takes the whole list at once: a popper of single blocks would have to fear their reuse (ABA).
void FlushDeferred(void (*free_block)(void*)) {
  void* block = head.exchange(nullptr, std::memory_order_acquire);
  while (block != nullptr) {
    void* next = *LinkOf(block);
    free_block(block);
    block = next;
  }
}

uint64_t DeferredBlocks() { return deferred.load(std::memory_order_relaxed); }

}  // namespace pcmalloc::front
