// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the malloc under test offers beyond the C family, looked up by name at start so
//   that one binary serves every malloc.
// Invariants: a null entry means "not offered"; no pcmalloc header is needed.
// Cost: a few dlsym calls at start.
#ifndef PCMALLOC_TESTS_STRESS_HOOKS_H_
#define PCMALLOC_TESTS_STRESS_HOOKS_H_

#include <stddef.h>
#include <stdint.h>

namespace stress {

struct Hooks {
  void (*drain_cpu)(int cpu);
  void (*resize_cpu)(int cpu);
  void (*stop_cpu)(int cpu);
  void (*start_cpu)(int cpu);
  int (*cpu_bound)();
  uint64_t (*aborts)();
  const char* (*mode)();
  int (*trim)(size_t pad);

  // True when anything but malloc_trim can be done to a CPU's cache.
  bool CanDisturbCpus() const {
    return drain_cpu != nullptr || resize_cpu != nullptr || stop_cpu != nullptr;
  }
};

// The only instance; FindHooks fills it before any thread is started.
extern Hooks hooks;
void FindHooks();

// File that the process's malloc came from, or "?"; found by FindHooks, because looking it up may
// call malloc, and a report must not.
const char* MallocFile();

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_HOOKS_H_
