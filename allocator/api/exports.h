// SPDX-License-Identifier: Apache-2.0
//
// Purpose: marks what the world may call. Everything else is hidden.
// Invariants: //:libpcmalloc.lds lists the same names; tests/artifacts compares the two.
// Cost: none.
#ifndef PCMALLOC_ALLOCATOR_API_EXPORTS_H_
#define PCMALLOC_ALLOCATOR_API_EXPORTS_H_

#define PCM_EXPORT __attribute__((visibility("default")))

#endif  // PCMALLOC_ALLOCATOR_API_EXPORTS_H_
