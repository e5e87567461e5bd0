// SPDX-License-Identifier: Apache-2.0
//
// Purpose: makes the kernel refuse memory from a chosen moment on, by seccomp filters.
// Invariants: the filter holds for every thread of the process, for its children and across exec,
//   and cannot be taken back: use it in a process of its own (tests/support/process.h).
// Cost: some tens of nanoseconds for each system call afterwards.
#ifndef PCMALLOC_TESTS_LIMITS_FAULTS_H_
#define PCMALLOC_TESTS_LIMITS_FAULTS_H_

#include <vector>

namespace pcmalloc::testing {

// Each of these system calls fails with ENOMEM from now on. False if there is no seccomp.
bool RefuseSystemCalls(const std::vector<int>& numbers);

// Each of these system calls kills the process from now on.
bool DieOnSystemCalls(const std::vector<int>& numbers);

// Every mmap and mprotect for more than 1 GiB of writable memory fails with ENOMEM, as it does
// under vm.overcommit_memory=2 when that is all there is; reserving without write access is
// allowed.
bool RefuseLargeCommits();

}  // namespace pcmalloc::testing

#endif  // PCMALLOC_TESTS_LIMITS_FAULTS_H_
