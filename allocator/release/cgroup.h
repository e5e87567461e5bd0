// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the kernel's control groups and its pressure figures say about memory, for this
//   process.
//
//      /proc/self/cgroup       which group       4:memory:/a/b          0::/a/b
//      /proc/self/mountinfo    where it lies     ... cgroup ... memory  ... cgroup2 ...
//      <mount>/a/b, <mount>/a, <mount>           the smallest limit of these
//
// Invariants: nothing is allocated, errno is kept, no file descriptor survives a call;
//   async-signal-safe (a call that interrupts another finds nothing). A file that is missing,
//   unreadable or odd is a limit or a figure that is not there, never an error.
// Cost: some ten to thirty system calls for the limit, three for the pressure; never on a path that
//   is not slow anyway.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_CGROUP_H_
#define PCMALLOC_ALLOCATOR_RELEASE_CGROUP_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc::release {

inline constexpr uint64_t kNoLimit = UINT64_MAX;
inline constexpr size_t kPathBytes = 512;

struct Cgroup {
  uint64_t limit_bytes = 0;        // of the group and those above it, as far as they can be seen
  char pressure[kPathBytes] = "";  // the pressure file of the group, else the machine's; "" if none
};

// `root` stands before every path, also before those that the files name; "" for the real ones.
// False, with nothing learnt, if another call is at it.
bool ReadCgroup(const char* root, Cgroup* result);

// Hundredths of a percent of the last 10 seconds in which some task waited for memory; -1 if the
// file does not say.
int ReadPressure(const char* path);

// In the child of a fork whose parent's other threads may have been reading.
void ForgetReaders();

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_CGROUP_H_
