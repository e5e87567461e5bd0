// SPDX-License-Identifier: Apache-2.0
//
// Purpose: in which mode a test of the layers runs, which is final for a process: --mode=cpu, cid,
//   legacy or locked.
// Invariants: nothing has asked rseq::Discover() before.
// Cost: for the legacy mode an exec and a probe of some milliseconds.
#ifndef PCMALLOC_TESTS_SUPPORT_MODE_H_
#define PCMALLOC_TESTS_SUPPORT_MODE_H_

#include "percpu/slabs.h"

namespace pcmalloc::testing {

// Initialises GoogleTest; first in main(). Ends the process where there is no such mode, and with a
// message where it cannot run here. The legacy one needs an area of the library's own and
// a kernel that is seen to rewrite cpu_id_start; for it the program starts anew without
// the C library's registration.
percpu::Mode InitForMode(int* argc, char** argv);

}  // namespace pcmalloc::testing

#endif  // PCMALLOC_TESTS_SUPPORT_MODE_H_
