// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the critical sections of the architecture that is compiled for.
// Invariants: those of the file included.
// Cost: that of the file included.
#ifndef PCMALLOC_PERCPU_OPS_H_
#define PCMALLOC_PERCPU_OPS_H_

#if defined(__x86_64__)
#include "percpu/ops_cached_x86_64.h"  // IWYU pragma: export
#include "percpu/ops_x86_64.h"         // IWYU pragma: export

namespace pcmalloc::percpu {
inline constexpr bool kHasCachedOps = true;
}
#elif defined(__aarch64__)
#include "percpu/ops_aarch64.h"  // IWYU pragma: export

namespace pcmalloc::percpu {
// The legacy scheme exists for comparison, on x86_64 alone.
inline constexpr bool kHasCachedOps = false;
inline void* PopCached(unsigned long) { return nullptr; }
inline bool PushCached(unsigned long, void*) { return false; }
inline bool CacheSlab() { return false; }
}  // namespace pcmalloc::percpu
#else
#error "pcmalloc has no critical sections for this architecture"
#endif

#endif  // PCMALLOC_PERCPU_OPS_H_
