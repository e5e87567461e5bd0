// SPDX-License-Identifier: Apache-2.0
//
// Purpose: contents go from one committed range to another without being copied.
// Invariants: what arrives is what was there, whatever the kernel refuses and at whichever mapping;
//   both ranges stay committed and mapped; errno is kept; nothing is allocated.
// Cost: the page tables of the range and four system calls, however many mappings the range is;
//   before Linux 6.17 two for each mapping, and some more to find where each ends, about the
//   logarithm of the size.
#ifndef PCMALLOC_ALLOCATOR_OS_MOVE_H_
#define PCMALLOC_ALLOCATOR_OS_MOVE_H_

#include <stddef.h>

namespace pcmalloc::os {

// Moves the contents of one committed range to another; what the source holds afterwards is
// unspecified. Page tables are moved where the kernel can (from Linux 5.7 on) and will, some pages
// copied where mappings meet. False: it will not move the first of them, and both sides are as
// before. Nobody else may use either range meanwhile.
bool Move(void* from, void* to, size_t size);

// The same as before Linux 6.17, which moves one mapping at a time; for tests on newer ones.
bool MoveByPieces(void* from, void* to, size_t size);

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_MOVE_H_
