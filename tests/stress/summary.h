// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the run did, as an aligned table or as one JSON object with the same keys.
// Invariants: nothing allocates, so that it may be printed after a crash; async-signal-safe.
// Cost: a few microseconds and a walk over the workers.
#ifndef PCMALLOC_TESTS_STRESS_SUMMARY_H_
#define PCMALLOC_TESTS_STRESS_SUMMARY_H_

#include <stdint.h>

#include "tests/stress/base.h"

namespace stress {

struct Totals {
  uint64_t operations = 0;
  uint64_t allocations = 0;
  uint64_t frees = 0;
  uint64_t reallocs = 0;
  uint64_t handovers = 0;
  uint64_t handler_operations = 0;
  uint64_t failures = 0;
  uint64_t abandoned = 0;
  uint64_t signals = 0;
  uint64_t forks = 0;
};
Totals CountTotals();

// Resident memory of this process in KiB, 0 if unknown.
uint64_t ResidentKib();

struct RunFacts {
  uint64_t start_ns = 0;
  uint64_t end_ns = 0;  // 0 while the workers run
  uint64_t aborts_at_start = 0;
  uint64_t rss_quarter_kib = 0;  // after a quarter of the run
  uint64_t rss_end_kib = 0;
  uint64_t freed_at_end = 0;
};

void AddSummary(const RunFacts& facts, bool json, Message& message);

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_SUMMARY_H_
