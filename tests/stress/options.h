// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the settings of a run, as plain values: read by every thread, written only before the
//   first is started.
// Invariants: none.
// Cost: none.
#ifndef PCMALLOC_TESTS_STRESS_OPTIONS_H_
#define PCMALLOC_TESTS_STRESS_OPTIONS_H_

#include <sched.h>
#include <stdint.h>

namespace stress {

// When the signal handler may call malloc.
enum class HandlerMalloc {
  kNever,
  kOutside,  // only where it did not interrupt a call of the malloc under test
  kAlways,
};

struct Options {
  double seconds = 10;
  double fork_limit_seconds = 20;  // a child that takes longer hangs
  unsigned threads = 0;
  uint64_t seed = 1;
  uint32_t reports = 10;  // violations told in full; the rest is counted
  uint32_t max_size = 256 << 10;
  unsigned signal_rate = 0;  // a second, 0 = none
  unsigned fork_rate = 0;
  unsigned migrate_rate = 0;
  unsigned respawn_rate = 0;
  unsigned trim_rate = 0;
  unsigned drain_rate = 0;  // 0 with `drain`: as fast as it goes
  bool drain = true;
  bool pin = true;
  bool aligned = true;  // also posix_memalign, aligned_alloc, memalign
  bool dense = false;
  HandlerMalloc handler_malloc = HandlerMalloc::kOutside;
  cpu_set_t cpu_set;
  unsigned cpu_count = 0;
  int cpus[CPU_SETSIZE];
};

extern Options options;

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_OPTIONS_H_
