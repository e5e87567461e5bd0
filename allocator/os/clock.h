// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a cheap clock for what happens every some hundred milliseconds, and an exact one.
// Invariants: monotonic; async-signal-safe; errno is kept; never negative; 0 where there
//   is no clock.
// Cost: a few nanoseconds (the kernel's tick, read in user space; exact to 1 .. 10 ms). The exact
//   one some 30 ns, or a system call where the processor's counter is not to be trusted.
#ifndef PCMALLOC_ALLOCATOR_OS_CLOCK_H_
#define PCMALLOC_ALLOCATOR_OS_CLOCK_H_

#include <stdint.h>
#include <time.h>

namespace pcmalloc::os {

inline uint64_t CoarseMilliseconds() {
  timespec now = {};
  if (clock_gettime(CLOCK_MONOTONIC_COARSE, &now) != 0) return 0;
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1'000'000;
}

inline uint64_t Nanoseconds() {
  timespec now = {};
  if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 0;
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// Whether something that happens every so often and was set for `at` is due. A time that is further
// away than it can have been set is due too: a child of fork may live in another time namespace.
constexpr bool IsDue(uint64_t at, uint64_t now, uint64_t every) {
  return now >= at || at - now > every;
}

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_CLOCK_H_
