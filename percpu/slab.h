// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the memory layout that critical sections work on: one slab of pointer stacks a CPU, and
//   the table that leads from a CPU number to its slab.
//
//      slab_of   [-2] [-1] | [0] [1] [2] ...
//                  |    |     |   '--> Slab of CPU 1
//                closed slab  '------> closed slab until CPU 0 is first used, and while stopped
//
//      Slab      headers[class] = { current, end }     slot numbers: 8-byte words from its start
//                mark           = 1                    the slot below every stack has bit 0 set
//                slots            [1 . . . . . .][1 . . . .] ...
//                                  ^begin    ^current  ^end  (class k; begin[k] - 1 holds the mark)
//
//      pop:  item = slot[current - 1]; bit 0 set: empty.   push: current >= end: full.
//
//   A class that has not been used yet has { kMarkSlot + 1, 0 }: empty and full at once. The closed
//   slab has that for every class. So has class 0 everywhere, which stands for "not a small block".
//   Their `begin` is not below that `current`, for batches, which subtract the two.
//
// Invariants: a thread without a registered area has index -1 or -2 and meets the closed slab; an
//   entry is never null below the bound given to InitTable; only a section running on its CPU, or
//   whoever has stopped that CPU, writes `headers` and the slots; `begin` and `limit` never change.
//   Slab memory is recycled, never unmapped.
// Cost: address space by geometry (see Geometry), memory by the pages of it that are touched.
#ifndef PCMALLOC_PERCPU_SLAB_H_
#define PCMALLOC_PERCPU_SLAB_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc::percpu {

// Classes that a slab has room for; class 0 never holds anything.
inline constexpr unsigned kSlabClasses = 152;

// Enough for the largest configuration that Linux can be built for (CONFIG_NR_CPUS <= 8192).
inline constexpr unsigned kMaxCpus = 8192;

// Both fields are 32 bits wide because the processor forwards a 4-byte store to a later 4-byte load
// for nothing, while narrower fields cost four times the rest of the section.
struct Header {
  uint32_t current;  // first free slot of the stack
  uint32_t end;      // first slot that may not be written: the capacity in force
};

inline constexpr uint32_t kMarkSlot = kSlabClasses;
inline constexpr Header kUnusedHeader = {kMarkSlot + 1, 0};
inline constexpr uintptr_t kMark = 1;

struct Slab {
  Header headers[kSlabClasses];
  uintptr_t mark;                // slot kMarkSlot
  uint32_t begin[kSlabClasses];  // first slot of the class
  uint32_t limit[kSlabClasses];  // one past its last slot: `end` never exceeds it
  size_t bytes;                  // of the whole mapping
  Slab* next_free;               // while it is kept for another use

  uintptr_t* slot(uint32_t index) { return reinterpret_cast<uintptr_t*>(this) + index; }
};
static_assert(offsetof(Slab, mark) == kMarkSlot * sizeof(uintptr_t));

// How many slots each class gets in a slab.
struct Geometry {
  uint32_t capacity[kSlabClasses];
};

// The table that the sections index, entries -2 and -1 first.
extern "C" __attribute__((visibility("hidden"))) Slab* pcmalloc_slab_of[2 + kMaxCpus];
extern "C" __attribute__((visibility("hidden"))) const Slab pcmalloc_closed_slab;

inline Slab* ClosedSlab() { return const_cast<Slab*>(&pcmalloc_closed_slab); }

}  // namespace pcmalloc::percpu

#endif  // PCMALLOC_PERCPU_SLAB_H_
