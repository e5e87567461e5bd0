// SPDX-License-Identifier: Apache-2.0
//
// Purpose: marks what the world may call. Everything else is hidden.
// Invariants: //:libpcmalloc.lds lists the same names; tests/artifacts compares the two.
// Cost: none; PCM_HOT_EXPORT up to 63 bytes of padding.
#ifndef PCMALLOC_ALLOCATOR_API_EXPORTS_H_
#define PCMALLOC_ALLOCATOR_API_EXPORTS_H_

#define PCM_EXPORT __attribute__((visibility("default")))

// The same for hit paths: how they lie in cache lines is not to depend on what stands before them.
#define PCM_HOT_EXPORT __attribute__((visibility("default"), aligned(64)))

#endif  // PCMALLOC_ALLOCATOR_API_EXPORTS_H_
