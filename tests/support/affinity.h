// SPDX-License-Identifier: Apache-2.0
//
// Purpose: on which CPUs a test's threads run.
// Invariants: only CPUs that the process was given at its start, or by others, are used.
// Cost: a system call or two.
#ifndef PCMALLOC_TESTS_SUPPORT_AFFINITY_H_
#define PCMALLOC_TESTS_SUPPORT_AFFINITY_H_

#include <sched.h>

#include <vector>

#include "gtest/gtest.h"

namespace pcmalloc::testing {

// The CPUs that the calling thread may run on.
inline std::vector<int> AllowedCpus() {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof(allowed), &allowed);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  }
  return cpus;
}

// Leaves the calling thread that CPU alone.
inline void PinTo(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
}

// The calling thread stays on its first CPU for a scope.
class Pinned {
 public:
  Pinned() {
    sched_getaffinity(0, sizeof(before_), &before_);
    PinTo(AllowedCpus()[0]);
  }
  ~Pinned() { sched_setaffinity(0, sizeof(before_), &before_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_;
};

}  // namespace pcmalloc::testing

#endif  // PCMALLOC_TESTS_SUPPORT_AFFINITY_H_
