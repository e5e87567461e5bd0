// SPDX-License-Identifier: Apache-2.0
//
// Purpose: how much memory the process may have, from whoever says so, and what follows from it for
//   the page heap and the per-CPU caches.
//
//      limit_soft ----------.
//      90 % of the cgroup --+--> smallest: above it free memory goes at once, caches shrink
//      pressure (PSI) ------'    (pressure: as if it were 0)
//      limit_hard -------------> requests fail with ENOMEM once nothing idle is left to give
//      percpu_cache ----------.
//      all of these / 8 / CPUs +-> smallest: bytes of objects one CPU may hold; a quarter under
//                              '   pressure
//
//   What counts is the page heap's footprint: blocks in use, free pages with memory behind them,
//   what caches hold, and metadata.
//
// Invariants: all figures are atomic; async-signal-safe; a limit below what is in use takes nothing
//   away from anybody. Files are read by one at a time; who comes second goes on without.
// Cost: none on hit paths. Slow paths without a thread: some loads each tick; from 64 MiB on, in a
//   heap that grows, three system calls a second. Applying limits stops each CPU in use once if
//   caches have to shrink.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_LIMITS_H_
#define PCMALLOC_ALLOCATOR_RELEASE_LIMITS_H_

#include <stdint.h>

#include "allocator/release/cgroup.h"

namespace pcmalloc::release {

// At the start, from the configuration.
void ConfigureLimits();

// kNoLimit for none. Take effect before they return, whatever others set at the same time.
// SetPercpuCache takes the nearest of what the configuration accepts.
void SetSoftLimit(uint64_t bytes);
void SetHardLimit(uint64_t bytes);
void SetPercpuCache(uint64_t bytes);
uint64_t SoftLimit();
uint64_t HardLimit();

// The heap has grown past the mark that the last call set: reads the cgroup's limit if that was not
// done at such a size yet, gives back what is idle if the heap is above its soft limit. Where no
// thread watches, also looks at the pressure once the heap has 64 MiB, but not within a second of
// the last look. The time is that of os::CoarseMilliseconds().
void OnGrowth(uint64_t now_ms);

// Now and then on slow paths where no thread watches: looks at the pressure, at most every second,
// as long as there is some, or once if growth came too soon for a look; else sees, every second,
// whether the heap has become smaller, because growth is measured from there.
void OnTick(uint64_t now_ms);

// For the background thread: the cgroup's limit every ten seconds, the pressure every second.
void WatchMachine(uint64_t now_ms);

// Whether there is a thread that calls WatchMachine; none at first. Slow paths look at the pressure
// where there is none, but not with decay:never.
void SetWatched(bool by_thread);

// In the child of a fork whose parent's other threads may have been reading.
void ForgetWatchers();

// From now on no files are read: the process may not be allowed to. Ends what pressure there is.
void LeaveFilesAlone();

// Whether the last look found memory short: then the next must not be put off for ever.
bool UnderPressure();

// Where the files are looked for ("" for the real ones); for tests, before anything was read.
void SetFilesRoot(const char* root);

struct LimitStats {
  uint64_t soft_bytes;       // in force, from whatever source; kNoLimit if none
  uint64_t hard_bytes;       // kNoLimit if none
  uint64_t cgroup_bytes;     // kNoLimit if none or not read yet
  uint64_t percpu_bytes;     // in force
  uint64_t relieves;         // times that everything idle was given back because of a limit
  uint64_t pressure_rounds;  // looks that found the machine or the group short of memory
};
LimitStats ReadLimitStats();

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_LIMITS_H_
