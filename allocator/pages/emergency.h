// SPDX-License-Identifier: Apache-2.0
//
// Purpose: memory for a signal handler that interrupted its own thread inside a lock of this
//   allocator. Lock-free, separate from the arenas.
// Invariants: async-signal-safe, takes no lock; blocks are 16-aligned (or as asked for), freed
//   blocks are used again; the address ranges never overlap an arena, so free() finds such a block
//   on its slow path and by EmergencyOwns() only.
// Cost: an mmap for the first block and for each large one; meant to be rare.
#ifndef PCMALLOC_ALLOCATOR_PAGES_EMERGENCY_H_
#define PCMALLOC_ALLOCATOR_PAGES_EMERGENCY_H_

#include <stddef.h>

namespace pcmalloc {

// Null when the kernel refuses. `alignment` is a power of two.
void* EmergencyTake(size_t size, size_t alignment);
bool EmergencyOwns(const void* p);
size_t EmergencySize(const void* p);  // usable bytes; p must be owned
void EmergencyGive(void* p);          // p must be owned
size_t EmergencyBlocks();             // handed out since the start, for statistics

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_EMERGENCY_H_
