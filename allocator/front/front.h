// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the policy of the per-CPU caches: what happens when a section found its stack empty,
//   full or closed; how much each class may hold on each CPU.
//
//      Allocate (miss)  --> make the slab / register the thread, if that was why
//                       --> grow the class's capacity, if that pays, within the CPU's budget
//                       --> central::Take a batch: one for the caller, the rest into the slab
//      Deallocate (full)--> grow, else take a batch out of the slab and central::Give it
//
// Invariants: the sum over classes of capacity * size stays within the CPU's budget, an
//   eighth for small classes and single slots besides, give or take what is in flight;
//   async-signal-safe: where a lock is held by this very thread, a block comes from emergency
//   memory and a freed one waits on the deferred list.
// Cost: a batch's worth of work, once a batch.
#ifndef PCMALLOC_ALLOCATOR_FRONT_FRONT_H_
#define PCMALLOC_ALLOCATOR_FRONT_FRONT_H_

#include <stddef.h>
#include <stdint.h>

#include "percpu/slab.h"

namespace pcmalloc::front {

// Slots for each class in a slab: as many as a busy CPU has use for.
percpu::Geometry MakeGeometry();

// The same for a CPU that has just begun: every stack it touches is a page of the wide geometry, so
// a small process would pay for tables of mostly empty slots. Where classes deserve more slots than
// that the slab moves to one of 256 slots a class, and then to the wide one.
percpu::Geometry MakeCompactGeometry();

// A block of the class, or null without memory.
void* Allocate(unsigned size_class);

// Takes a block of the class back. `p` must be a block's start.
void Deallocate(unsigned size_class, void* p);

// Empties the slab of an index into the layers below; returns the number of objects.
size_t DrainIndex(int index);

// The same for small blocks of the CPU that the thread runs on, by the operations of the paths:
// without a stop, beside others.
size_t DrainHere();

// As DrainIndex, and the classes have to earn their capacity anew: for a budget that was lowered.
size_t ShrinkIndex(int index);

// Moves the slab of an index to another place in memory, contents kept.
bool ResizeIndex(int index);

// Empties every slab and the transfer caches, so that spans can go back.
void Trim();

struct Stats {
  uint64_t refills;           // misses of malloc that went to the transfer cache
  uint64_t refill_objects;    // objects that came with them
  uint64_t flushes;           // full stacks
  uint64_t flush_objects;     // objects given down by them
  uint64_t direct;            // operations that no slab could serve (closed, unregistered thread)
  uint64_t steals;            // capacity taken from another class
  uint64_t drains;            // slabs emptied from outside
  uint64_t deferred;          // frees put off in a signal handler
  uint64_t held_bytes;        // objects in the slabs
  uint64_t held_large_bytes;  // those of them that are spans of their own
  uint64_t capacity_bytes;    // budget handed out to classes
};
Stats ReadStats();

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_FRONT_H_
