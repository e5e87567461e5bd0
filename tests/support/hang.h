// SPDX-License-Identifier: Apache-2.0
//
// Purpose: where the processes of a test stand that does not end, for the watchdog to say.
// Invariants: only looks: nothing is killed and nothing goes on otherwise than before. Whatever
//   cannot be read (no gdb, no right to attach) is said in its place.
// Cost: a quarter of a second, and with gdb some seconds for each process.
#ifndef PCMALLOC_TESTS_SUPPORT_HANG_H_
#define PCMALLOC_TESTS_SUPPORT_HANG_H_

#include <sys/types.h>

#include <string>

namespace pcmalloc::testing {

// For each thread of each process of that group: its state, what it waits for in the kernel, the
// instruction that it will go on with, its signals, and whether it ran while this looked. Then the
// stacks, of the first few processes, if gdb is installed.
std::string DescribeGroup(pid_t group);

// Lets a process that is not this one's parent, such as a gdb that this one's parent started,
// attach to the calling process, where the kernel restricts that (Yama).
void AllowDescription();

}  // namespace pcmalloc::testing

#endif  // PCMALLOC_TESTS_SUPPORT_HANG_H_
