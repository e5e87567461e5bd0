// SPDX-License-Identifier: Apache-2.0
//
// Purpose: whether a system call that the program does not make itself may be its end.
// Invariants: nothing is allocated; errno is kept; no file descriptor survives a call.
// Cost: three system calls, of the kind that any program makes.
#ifndef PCMALLOC_ALLOCATOR_OS_SANDBOX_H_
#define PCMALLOC_ALLOCATOR_OS_SANDBOX_H_

namespace pcmalloc::os {

// Whether system calls of this thread are filtered; true also where nobody says.
bool InSandbox();

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_SANDBOX_H_
