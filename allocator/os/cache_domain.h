// SPDX-License-Identifier: Apache-2.0
//
// Purpose: which CPUs share a last-level cache.
// Invariants: no system call on x86_64 (a sandbox cannot object, /sys need not be there), one on
//   aarch64; async-signal-safe; errno is kept.
// Cost: some CPUID instructions, which trap in virtual machines: tens of microseconds. To be asked
//   once a CPU.
#ifndef PCMALLOC_ALLOCATOR_OS_CACHE_DOMAIN_H_
#define PCMALLOC_ALLOCATOR_OS_CACHE_DOMAIN_H_

#include <stdint.h>

namespace pcmalloc::os {

// A number that is the same for two CPUs if they share a last-level cache, of the CPU that the
// caller runs on (who may be moved meanwhile: compare the CPU's number before and after). x86_64:
// from the APIC id and how many of those share the cache (CPUID leaf 4 or 0x8000001D); 0 for all
// where none is said to be shared. aarch64, where a program cannot ask for caches: the NUMA node.
uint64_t CacheDomainHere();

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_CACHE_DOMAIN_H_
