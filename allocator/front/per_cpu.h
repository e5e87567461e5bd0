// SPDX-License-Identifier: Apache-2.0
//
// Purpose: all that this layer knows of a CPU, side by side: in a small process each of these pages
//   is one of a few hundred.
//
//      ... 1][0: counters | books | demand ]    384 bytes each, on lines of its own
//
// Invariants: zeros mean a CPU that was never used; nothing touches it before.
// Cost: a page for each 10 neighbouring CPUs that are used.
#ifndef PCMALLOC_ALLOCATOR_FRONT_PER_CPU_H_
#define PCMALLOC_ALLOCATOR_FRONT_PER_CPU_H_

#include <stdint.h>

#include <atomic>

#include "allocator/front/demand.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/slab.h"

namespace pcmalloc::front {

struct Counters {
  std::atomic<uint64_t> refills{0};
  std::atomic<uint64_t> refill_objects{0};
  std::atomic<uint64_t> flushes{0};
  std::atomic<uint64_t> flush_objects{0};
  std::atomic<uint64_t> refills_of_one{0};  // not among those above
  std::atomic<uint64_t> flushes_of_one{0};
  std::atomic<uint32_t> cramped{0};     // misses for which the slab's geometry had no slots
  std::atomic<uint32_t> large_full{0};  // full stacks of large classes
};

struct Books {
  std::atomic<int64_t> used{0};      // bytes; capacity * size over all classes
  std::atomic<uint32_t> victim{0};   // where the search for capacity to take goes on
  std::atomic<uint16_t> in_vain{0};  // classes looked at since one had something to take
  std::atomic<uint16_t> pause{0};    // searches to leave out
};

struct alignas(64) PerCpu {
  Counters counters;
  Books books;
  MissRate rate;
  std::atomic<uint32_t> misses_counted{0};  // since they were halved
  // For each class: its last miss, and how many of that kind there were on end; and how many of the
  // CPU's recent misses were its. (No std::atomic: clang gives up on a million constructors.)
  uint8_t runs[kNumCachedClasses]{};
  uint8_t misses[kNumCachedClasses]{};
};

static_assert(sizeof(PerCpu) == 384);

// Backwards, so that in a library that is linked so (tools/build/layout.lds) what comes next in
// memory is on the page of the first CPUs.
extern PerCpu per_cpu[percpu::kMaxCpus];
inline PerCpu& OfCpu(int index) { return per_cpu[percpu::kMaxCpus - 1 - index]; }

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_PER_CPU_H_
