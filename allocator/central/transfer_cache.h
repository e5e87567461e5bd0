// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the way between the per-CPU slabs and the spans, one for each size class: a stack of
//   objects that one CPU has given and another may take without touching their spans.
//
//      slab of CPU 0 --Give--> [ o o o o o o . . . . ] --Take--> slab of CPU 1     shard 0
//                                    | full / empty |
//                                    v              ^
//      slab of CPU 8 --Give--> [ o o . . . . . . . . ] --Take--> slab of CPU 9     shard 1
//                                    | full / empty |
//                                    v              ^
//                                     CentralList
//
//   Where groups of CPUs have caches of the processor of their own, each group has a shard, so that
//   objects and locks stay in one of them. Which shard is for the caller to say.
//
// Invariants: at most kSlots objects and about kMaxBytes bytes of them in each; all shards and
//   classes together stay in proportion to the heap; async-signal-safe: where this thread holds the
//   lock already, the call says so and does nothing.
// Cost: one uncontended lock and a copy for a batch.
#ifndef PCMALLOC_ALLOCATOR_CENTRAL_TRANSFER_CACHE_H_
#define PCMALLOC_ALLOCATOR_CENTRAL_TRANSFER_CACHE_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/base/lock.h"
#include "allocator/central/central_list.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc::central {

inline constexpr unsigned kMaxShards = 8;

// Makes sure that the shard is there; 0 always is. False without memory for it.
bool OpenShard(unsigned shard);
unsigned OpenShards();

// Takes up to `n` objects of a class from the shard's transfer cache, else from the spans; fewer
// than `n` only with a reason in *shortage. `shard` must have been opened.
uint32_t Take(unsigned size_class, void** out, uint32_t n, Shortage* shortage, unsigned shard = 0);

// Gives objects back; returns how many were taken: fewer than `n` only when this thread was
// interrupted while it held a lock that is needed. Settle belongs to it.
uint32_t Put(unsigned size_class, void* const* in, uint32_t n, unsigned shard);

// What follows when objects have been given back: takes care that transfer caches, and what is free
// inside of spans, do not become too much. Apart from Put for the sake of the stack, on which the
// objects need not be any more.
void Settle(unsigned size_class, unsigned shard);

// Both.
inline uint32_t Give(unsigned size_class, void* const* in, uint32_t n, unsigned shard = 0) {
  const uint32_t given = Put(size_class, in, n, shard);
  Settle(size_class, shard);
  return given;
}

// Moves everything that the transfer caches hold, or those of a class, down to the spans; returns
// the number of bytes.
size_t Trim();
size_t TrimClass(unsigned size_class);

struct Stats {
  uint64_t transfer_objects;  // of all shards
  uint64_t transfer_bytes;
  uint64_t central_objects;
  uint64_t central_bytes;
  uint64_t spans;
};
Stats ClassStats(unsigned size_class);

void LockForFork();
void UnlockAfterFork(bool in_child);

}  // namespace pcmalloc::central

#endif  // PCMALLOC_ALLOCATOR_CENTRAL_TRANSFER_CACHE_H_
