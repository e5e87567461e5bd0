// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/transfer_cache.h"

#include <string.h>

namespace pcmalloc::central {
namespace {

constexpr uint32_t kSlots = 1024;
constexpr size_t kMaxBytes = 256 * 1024;  // of one class; at least two batches, whatever they weigh

constexpr uint32_t Capacity(unsigned size_class) {
  const size_t size = ClassSize(size_class);
  const size_t batches = size_t{2} * BatchSize(size_class);
  const size_t objects = kMaxBytes / size;
  const size_t capacity = objects < batches ? batches : objects;
  return static_cast<uint32_t>(capacity < kSlots ? capacity : kSlots);
}

struct TransferCache {
  RankedLock<LockRank::kTransfer> lock;
  uint32_t count = 0;
};

constinit TransferCache caches[kNumClasses];
// Not in the struct, whose lock is not all zero: a megabyte of zeros would lie in the file.
constinit void* slots_of[kNumClasses][kSlots] = {};
constinit CentralList lists[kNumClasses];

uint32_t CapacityOf(unsigned size_class) {
  struct Table {
    uint32_t rows[kNumClasses];
  };
  static constexpr Table kTable = [] {
    Table table{};
    for (unsigned c = 1; c < kNumClasses; ++c) table.rows[c] = Capacity(c);
    return table;
  }();
  return kTable.rows[size_class];
}

}  // namespace

uint32_t Take(unsigned size_class, void** out, uint32_t n, Shortage* shortage) {
  *shortage = Shortage::kNone;
  TransferCache& cache = caches[size_class];
  uint32_t taken = 0;
  if (__atomic_load_n(&cache.count, __ATOMIC_RELAXED) != 0) {
    LockHolder held(cache.lock);
    if (held) {
      taken = cache.count < n ? cache.count : n;
      memcpy(out, &slots_of[size_class][cache.count - taken], taken * sizeof(void*));
      __atomic_store_n(&cache.count, cache.count - taken, __ATOMIC_RELAXED);
    }
  }
  if (taken == n) return n;
  return taken + lists[size_class].Take(size_class, out + taken, n - taken, shortage);
}

uint32_t Give(unsigned size_class, void* const* in, uint32_t n) {
  TransferCache& cache = caches[size_class];
  uint32_t given = 0;
  {
    LockHolder held(cache.lock);
    if (held) {
      const uint32_t room = CapacityOf(size_class) - cache.count;
      given = room < n ? room : n;
      memcpy(&slots_of[size_class][cache.count], in, given * sizeof(void*));
      __atomic_store_n(&cache.count, cache.count + given, __ATOMIC_RELAXED);
    }
  }
  if (given == n) return n;
  return given + lists[size_class].Give(size_class, in + given, n - given);
}

size_t TrimClass(unsigned size_class) {
  TransferCache& cache = caches[size_class];
  if (__atomic_load_n(&cache.count, __ATOMIC_RELAXED) == 0) return 0;
  LockHolder held(cache.lock);
  if (!held) return 0;
  const uint32_t given = lists[size_class].Give(size_class, slots_of[size_class], cache.count);
  if (given == 0) return 0;  // all or nothing
  __atomic_store_n(&cache.count, 0, __ATOMIC_RELAXED);
  return given * ClassSize(size_class);
}

size_t Trim() {
  size_t bytes = 0;
  for (unsigned c = 1; c < kNumClasses; ++c) bytes += TrimClass(c);
  return bytes;
}

Stats ClassStats(unsigned size_class) {
  const uint64_t in_transfer = __atomic_load_n(&caches[size_class].count, __ATOMIC_RELAXED);
  const CentralList& list = lists[size_class];
  const size_t size = ClassSize(size_class);
  return {in_transfer, in_transfer * size, list.free_objects(), list.free_objects() * size,
          list.spans()};
}

// The order of the locks is that of the paths: every transfer cache, then every list. Those that
// are refused are left alone on the way back too.
void LockForFork() {
  for (unsigned c = 1; c < kNumClasses; ++c) (void)caches[c].lock.AcquireForFork();
  for (unsigned c = 1; c < kNumClasses; ++c) (void)lists[c].LockForFork();
}

void UnlockAfterFork(bool in_child) {
  for (unsigned c = kNumClasses; c-- > 1;) lists[c].UnlockAfterFork(in_child);
  for (unsigned c = kNumClasses; c-- > 1;) caches[c].lock.ReleaseAfterFork(in_child);
}

}  // namespace pcmalloc::central
