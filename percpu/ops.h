// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the critical sections of the architecture that is compiled for.
// Invariants: those of the file included.
// Cost: that of the file included.
#ifndef PCMALLOC_PERCPU_OPS_H_
#define PCMALLOC_PERCPU_OPS_H_

#if defined(__x86_64__)
#include "percpu/ops_x86_64.h"  // IWYU pragma: export
#elif defined(__aarch64__)
#include "percpu/ops_aarch64.h"  // IWYU pragma: export
#else
#error "pcmalloc has no critical sections for this architecture"
#endif

#endif  // PCMALLOC_PERCPU_OPS_H_
