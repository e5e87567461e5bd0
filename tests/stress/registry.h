// SPDX-License-Identifier: Apache-2.0
//
// Purpose: says of every 8 bytes of address space whether a live block covers them, so that a block
//   handed out twice is seen although nobody has written to it yet.
//
//      address >> 26          directory entry --> chunk: 1 MiB of bits for 64 MiB of addresses
//      address >> 9 & 0x1ffff                     word in the chunk
//      address >> 3 & 63                          bit in the word
//
//   Eight bytes, not sixteen, because some allocators place 8-byte blocks side by side.
//
// Invariants: a bit is claimed by compare-and-swap and released by its owner only; a failed claim
//   leaves nothing claimed; memory comes from mmap; lock-free and async-signal-safe.
// Cost: one locked instruction per 512 bytes of block, for claim and for release.
#ifndef PCMALLOC_TESTS_STRESS_REGISTRY_H_
#define PCMALLOC_TESTS_STRESS_REGISTRY_H_

#include <stddef.h>
#include <stdint.h>

namespace stress {

class Registry {
 public:
  static constexpr unsigned kAddressBits = 48;

  // Must come before anything else.
  static void Init();

  // Claims [address, address + size), size > 0. Returns 0, or the first address that is already
  // claimed (and then claims nothing).
  static uintptr_t Claim(uintptr_t address, size_t size);

  // Gives a claim back. False when part of it was not claimed: the books themselves are wrong.
  static bool Release(uintptr_t address, size_t size);

  // Number of claimed 8-byte granules in the whole address space.
  static uint64_t CountClaimed();
};

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_REGISTRY_H_
