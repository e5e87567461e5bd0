// SPDX-License-Identifier: Apache-2.0
//
// Purpose: which shard of the transfer caches a thread uses: CPUs that share a last-level
//   cache share one.
//
//      CPUs  0 1 2 3   4 5 6 7   8 ...
//            \_ LLC _/ \_ LLC _/
//            shard 0   shard 1   ...     up to central::kMaxShards; then they share
//
// Invariants: whatever the answer, the allocator is right: a wrong one costs time. A process that
//   has run on few CPUs has one shard and asks nobody.
// Cost: two loads, once the CPU is known.
#ifndef PCMALLOC_ALLOCATOR_FRONT_LOCALITY_H_
#define PCMALLOC_ALLOCATOR_FRONT_LOCALITY_H_

namespace pcmalloc::front {

// The shard for the CPU that this thread runs on, opened. Async-signal-safe.
unsigned NearShard();

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_LOCALITY_H_
