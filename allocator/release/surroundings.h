// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the background thread must know of the process around it.
// Invariants: nothing is allocated; errno is kept; no file descriptor survives a call.
// Cost: two or three system calls each.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_SURROUNDINGS_H_
#define PCMALLOC_ALLOCATOR_RELEASE_SURROUNDINGS_H_

namespace pcmalloc::release {

// What a filter of system calls leaves to the calling thread.
enum class Sandbox {
  kNone,        // there is no filter
  kReadsFiles,  // there is one, or nobody says, but files can be opened, read and closed
  kClosed,      // not even that
};

// Finds out by opening, reading and closing a file: calls that any program makes, and all that
// kReadsFiles allows.
Sandbox FindSandbox();

// Whether the main thread has ended and no other is left but the calling one. The C library ends
// the process with the last thread: then that is the caller's duty. Takes no descriptor.
bool AloneInTheProcess();

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_SURROUNDINGS_H_
