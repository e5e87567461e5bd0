// SPDX-License-Identifier: Apache-2.0
//
// Purpose: decides when idle memory goes back to the operating system, and how much; how it goes is
//   the page heap's business.
// Invariants: pure functions of the numbers passed in.
// Cost: a few instructions.
#ifndef PCMALLOC_ALLOCATOR_PAGES_RELEASE_POLICY_H_
#define PCMALLOC_ALLOCATOR_PAGES_RELEASE_POLICY_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc {

struct ReleasePolicy {
  // Idle memory that is always allowed, and the part of the used memory that is.
  static constexpr uint64_t kIdleBytes = uint64_t{16} << 20;
  static constexpr uint64_t kIdleDivisor = 8;
  // Shorter ranges are not worth a system call of their own unless somebody asks for it.
  static constexpr size_t kShortestRange = size_t{128} << 10;

  // `limit` is kIdleBytes, or what the program asked for (mallopt).
  static constexpr uint64_t Bound(uint64_t used, uint64_t limit) {
    return used / kIdleDivisor > limit ? used / kIdleDivisor : limit;
  }

  // How many of the `idle` bytes should go. Half of the bound stays, so that the next pass is as
  // much freed memory away.
  static constexpr uint64_t BytesToReturn(uint64_t idle, uint64_t used, uint64_t limit) {
    const uint64_t bound = Bound(used, limit);
    return idle <= bound ? 0 : idle - bound / 2;
  }
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_RELEASE_POLICY_H_
