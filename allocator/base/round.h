// SPDX-License-Identifier: Apache-2.0
//
// Purpose: multiples of powers of two, of addresses, bytes and pages alike.
// Invariants: pure functions; `to` is a power of two; what is rounded up does not pass 2^64.
// Cost: two instructions or three.
#ifndef PCMALLOC_ALLOCATOR_BASE_ROUND_H_
#define PCMALLOC_ALLOCATOR_BASE_ROUND_H_

#include <stdint.h>

namespace pcmalloc {

// The multiple of `to` at `value` or next above it.
constexpr uintptr_t RoundUp(uintptr_t value, uintptr_t to) { return (value + to - 1) & ~(to - 1); }

// The multiple of `to` at `value` or next below it.
constexpr uintptr_t RoundDown(uintptr_t value, uintptr_t to) { return value & ~(to - 1); }

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_ROUND_H_
