// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the periodic look at all layers that brings unused memory down and out: slabs of CPUs
//   where nothing happens, transfer caches that nobody asks, free pages that grow old, and
//   everything once the whole process rests or the machine is short of memory.
//
//      slab unchanged for 2 periods ----> drained --.
//      transfer cache likewise ---------> trimmed --+--> spans --> page heap --Decay--> kernel
//      (0.1 s where most of what spans have is free, since the rest may be what caches hold)
//      nothing changed for the decay time ---------------------> all of it ----------^
//      PSI or a limit ----------------------> caches shrink, all of it goes at once --'
//
// Invariants: one caller of Maintain at a time; nothing is allocated; no CPU is stopped unless
//   its slab held objects and did not change over two periods (or memory is short, or mostly
//   free); a change that is missed (a section and its opposite between two looks) costs a
//   needless drain, never more.
// Cost: a KiB read for each CPU in use and one short hold of the page heap's lock a period; drains
//   and returns as they come. GatherOnTick: four loads; 20 to 50 ns an object that it moves.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_MAINTENANCE_H_
#define PCMALLOC_ALLOCATOR_RELEASE_MAINTENANCE_H_

#include <stdint.h>

namespace pcmalloc::release {

// A period for a decay time: an eighth of it, between 10 ms and a second.
constexpr uint64_t PeriodMs(uint64_t decay_ms) {
  return decay_ms / 8 < 10 ? 10 : decay_ms / 8 > 1000 ? 1000 : decay_ms / 8;
}

// A look if one is due, and what PageHeap::Decay does. Returns after how many milliseconds the next
// call makes sense; UINT64_MAX when nothing is left that could be given back, until somebody
// allocates or frees again.
uint64_t Maintain(uint64_t now_ms);

// For slow paths where there is no thread; any number of callers. Where more of the memory of spans
// is free than in use, empties the slab of the CPU that it runs on and all transfer caches: every
// 0.1 s for a CPU at most, every 0.5 s where that brings little. Waits for no CPU and makes no
// system call but what the page heap does with spans that have become whole.
void GatherOnTick(uint64_t now_ms);

// Forgets what was seen: for a new thread, whose predecessor may have been lost in a fork.
void ForgetMaintenance();

struct MaintenanceStats {
  uint64_t rounds;        // looks
  uint64_t idle_drains;   // slabs emptied because nothing happened on them, or by GatherOnTick
  uint64_t idle_trims;    // transfer caches likewise
  uint64_t idle_returns;  // times everything free was returned because the process rested
};
MaintenanceStats ReadMaintenanceStats();

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_MAINTENANCE_H_
