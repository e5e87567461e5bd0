// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the background thread must know of the process around it.
// Invariants: nothing is allocated; errno is kept; no file descriptor survives a call.
// Cost: two or three system calls each.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_SURROUNDINGS_H_
#define PCMALLOC_ALLOCATOR_RELEASE_SURROUNDINGS_H_

namespace pcmalloc::release {

// Whether the main thread has ended and no other is left but the calling one. The C library ends
// the process with the last thread: then that is the caller's duty. Takes no descriptor.
bool AloneInTheProcess();

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_SURROUNDINGS_H_
