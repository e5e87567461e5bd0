// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the threads that disturb the workers: signals, migrations, drains and resizes of per-CPU
//   caches, forks, thread exits, malloc_trim.
// Invariants: started after the workers; leave when `stopping` is set.
// Cost: one thread each, asleep between two disturbances, except the drainer, which by default goes
//   as fast as it can.
#ifndef PCMALLOC_TESTS_STRESS_DISTURB_H_
#define PCMALLOC_TESTS_STRESS_DISTURB_H_

#include <stdint.h>

namespace stress {

struct DisturbanceCounts {
  uint64_t drains;
  uint64_t resizes;
  uint64_t stops;
  uint64_t trims;
  uint64_t migrations;
  uint64_t respawns;
};

// Starts what the options ask for and the malloc offers. False when a thread could not be started.
bool StartDisturbances();
// Number of disturbing threads that have not left yet.
unsigned DisturbancesRunning();
DisturbanceCounts CountDisturbances();

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_DISTURB_H_
