// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the way down for objects, with a waiting room for those that cannot go it at the moment
//   because this thread, interrupted by a signal, holds a lock on the way.
//
//      head --> block --> block --> null      linked through each block's first word, which nobody
//                                             else uses between free and the next malloc
//
// Invariants: lock-free, async-signal-safe; blocks of any kind, of at least 8 bytes.
// Cost: one compare-and-swap a deferred block; nothing on any other path but a load.
#ifndef PCMALLOC_ALLOCATOR_FRONT_DEFERRED_H_
#define PCMALLOC_ALLOCATOR_FRONT_DEFERRED_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc::front {

// Gives objects of a class to the layers below; what they cannot take now is deferred.
void Return(unsigned size_class, void* const* items, uint32_t n);

// The same without what may follow (central::Settle), for those who have much on the stack.
void Put(unsigned size_class, void* const* items, uint32_t n);

// Gives up to `n` objects of a class in the slab of the CPU that the thread runs on to the layers
// below; returns how many.
uint32_t GiveDown(unsigned size_class, uint32_t n);

void Defer(void* p);
bool HasDeferred();

// Frees what waits, one block at a time, through `free_block` (which may defer again).
void FlushDeferred(void (*free_block)(void*));

uint64_t DeferredBlocks();  // since the start, for statistics

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_DEFERRED_H_
