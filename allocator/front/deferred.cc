// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/deferred.h"

#include <atomic>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/front/batch.h"
#include "allocator/front/locality.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/slabs.h"

namespace pcmalloc::front {

constinit SharedBatch shared_batches[kSharedBatches];

namespace {

constinit std::atomic<void*> head{nullptr};
constinit std::atomic<uint64_t> deferred{0};

void** LinkOf(void* block) { return static_cast<void**>(block); }

// Large classes have no shards, and to find the near one costs as much as a lock.
unsigned ShardFor(unsigned size_class) { return size_class < kNumClasses ? NearShard() : 0; }

void PutInto(unsigned shard, unsigned size_class, void* const* items, uint32_t n) {
  for (uint32_t given = central::Put(size_class, items, n, shard); ABSL_PREDICT_FALSE(given < n);
       ++given) {
    Defer(items[given]);
  }
}

// A function of its own: what its callers do besides can do without the array on the stack.
ABSL_ATTRIBUTE_NOINLINE uint32_t PutFromSlab(unsigned size_class, uint32_t n, unsigned shard) {
  Batch batch(percpu::CurrentIndex(), n);
  uint32_t given = 0;
  while (given < n) {
    const uint32_t step = n - given < batch.most() ? n - given : batch.most();
    const uint32_t got = percpu::PopBatch(size_class, batch.items(), step);
    if (got != 0) PutInto(shard, size_class, batch.items(), got);
    given += got;
    if (got < step) break;
  }
  return given;
}

}  // namespace

void Put(unsigned size_class, void* const* items, uint32_t n) {
  PutInto(ShardFor(size_class), size_class, items, n);
}

void Return(unsigned size_class, void* const* items, uint32_t n) {
  if (n == 0) return;
  const unsigned shard = ShardFor(size_class);
  PutInto(shard, size_class, items, n);
  central::Settle(size_class, shard);
}

uint32_t GiveDown(unsigned size_class, uint32_t n) {
  if (n == 0) return 0;
  const unsigned shard = ShardFor(size_class);
  const uint32_t given = PutFromSlab(size_class, n, shard);
  central::Settle(size_class, shard);
  return given;
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
