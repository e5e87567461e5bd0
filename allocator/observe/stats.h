// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the allocator's figures, gathered in one place and written for people and for machines.
// Invariants: nothing is allocated; a snapshot is taken layer by layer while the process goes on,
//   so its figures belong together only as well as a running process allows.
// Cost: tens of microseconds and 32 KiB of stack; never on a path of malloc.
#ifndef PCMALLOC_ALLOCATOR_OBSERVE_STATS_H_
#define PCMALLOC_ALLOCATOR_OBSERVE_STATS_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/base/text.h"
#include "allocator/front/front.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/release.h"

namespace pcmalloc::observe {

struct Snapshot {
  const char* program;  // of its path the last part
  uint64_t pid;
  const char* version;
  const char* mode;
  const char* reason;
  uint64_t small_operations;  // kNotCounted but in the counted build
  uint64_t fast_operations;
  uint64_t aborts;
  uint64_t emergency_blocks;
  uint64_t slabs;
  uint64_t cpu_bound;
  uint64_t slab_bytes;
  uint64_t transfer_bytes;
  uint64_t central_bytes;
  front::Stats front;
  PageStats pages;
  release::BackgroundStats background;
  release::MaintenanceStats maintenance;
  release::LimitStats limits;
};

// What only the layer above knows.
inline constexpr uint64_t kNotCounted = UINT64_MAX;
struct Identity {
  const char* version;
  const char* mode;
  const char* reason;
  uint64_t fast_operations;  // kNotCounted but in the counted build
  uint64_t slow_operations;
};

Snapshot TakeSnapshot(const Identity& identity);

// An aligned table.
void PrintTable(const Snapshot& snapshot, TextBuffer& out);
// One JSON object, no newline at its end.
void PrintJson(const Snapshot& snapshot, TextBuffer& out);

// At the start, if stats_print is asked for: keeps a descriptor of stderr, since many programs (all
// of coreutils) have closed theirs by the time of ReportAtExit.
void KeepStderr();

// What stats_print and stats_json ask for.
void ReportAtExit(const Identity& identity);

}  // namespace pcmalloc::observe

#endif  // PCMALLOC_ALLOCATOR_OBSERVE_STATS_H_
