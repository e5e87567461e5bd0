// SPDX-License-Identifier: Apache-2.0
//
// Purpose: memory for calls that come before the dynamic linker has relocated this library (an
//   IFUNC resolver of a library that is relocated earlier): no pointer in our data is valid yet, no
//   function of another library can be called.
// Invariants: works without any relocation; calls nothing; blocks are never used again.
// Cost: 4 MiB of address space, touched only if it happens.
#ifndef PCMALLOC_ALLOCATOR_API_BOOT_H_
#define PCMALLOC_ALLOCATOR_API_BOOT_H_

#include <stddef.h>

namespace pcmalloc {

// Whether the dynamic linker has done its work on this library.
bool Relocated();

// 16-aligned (or as asked for), zeroed; null when the region is used up.
void* BootTake(size_t size, size_t alignment);
bool BootOwns(const void* p);
size_t BootSize(const void* p);

// memcpy, without calling it.
void BootCopy(void* to, const void* from, size_t size);

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_BOOT_H_
