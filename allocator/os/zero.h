// SPDX-License-Identifier: Apache-2.0
//
// Purpose: makes used memory read as zero, writing no more of it than was touched.
// Invariants: what the kernel says is absent is dropped rather than trusted: it may be in swap, and
//   dropping what is not there costs nothing. Short absent runs are written.
// Cost: a system call for every 4096 kernel pages, and memset over what is resident; one system
//   call in all once large blocks have turned out untouched many times.
#ifndef PCMALLOC_ALLOCATOR_OS_ZERO_H_
#define PCMALLOC_ALLOCATOR_OS_ZERO_H_

#include <stddef.h>

namespace pcmalloc::os {

// Below this, clearing costs less than asking. Bytes.
inline constexpr size_t kWorthAsking = size_t{256} << 10;

// Clears `bytes` bytes of anonymous private memory of the allocator's own. Async-signal-safe.
void Zero(void* memory, size_t bytes);

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_ZERO_H_
