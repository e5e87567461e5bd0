// SPDX-License-Identifier: Apache-2.0
//
// Purpose: fork from a program whose other threads allocate: the child must find every lock free
//   and every structure whole.
// Invariants: all locks are taken in the order in which the paths take them, then given back in
//   parent and child; a lock that the forking thread holds already (fork in a signal handler) is
//   left to the interrupted code, which exists in both processes; from the first handler to the
//   last the thread's signals are blocked. Blocks that other threads of the
//   parent had on their way between two layers are lost to the child (at most a batch a thread).
// Cost: some 260 uncontended locks a fork; nothing otherwise.
#ifndef PCMALLOC_ALLOCATOR_API_FORK_H_
#define PCMALLOC_ALLOCATOR_API_FORK_H_

namespace pcmalloc {

void InstallForkHandlers();

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_FORK_H_
