// SPDX-License-Identifier: Apache-2.0
//
// Purpose: one look at the rseq layer from a fresh process, for rseq_test.cc, which starts it under
//   every kind of C library set-up, linkage and seccomp filter.
// Invariants: prints lines "key=value" to stdout and nothing else; status 0 unless it could not
//   run.
// Cost: none that matters.
#ifndef PCMALLOC_RSEQ_TESTING_PROBE_H_
#define PCMALLOC_RSEQ_TESTING_PROBE_H_

// argv[1]: a comma-separated list of what to look at (see kLooks in probe.cc).
extern "C" __attribute__((visibility("default"))) int ProbeMain(int argc, char** argv);

#endif  // PCMALLOC_RSEQ_TESTING_PROBE_H_
