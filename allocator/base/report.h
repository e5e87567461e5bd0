// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the library says to people on stderr: one line for a thing that went wrong and has
//   a fallback, one line and abort() for misuse of the heap.
// Invariants: one write(2) a message, so that lines of several threads do not mix; nothing is
//   allocated; errno is kept; async-signal-safe.
// Cost: one system call; never on a path that succeeds.
#ifndef PCMALLOC_ALLOCATOR_BASE_REPORT_H_
#define PCMALLOC_ALLOCATOR_BASE_REPORT_H_

#include "allocator/base/text.h"

namespace pcmalloc {

// Writes "pcmalloc: <text>\n" to stderr.
void Warn(const TextBuffer& text);

// The same, then abort(). For misuse that must not go on: a double free, an invalid pointer.
[[noreturn]] void Fatal(const TextBuffer& text);

// Writes the text as it is to a file descriptor, all of it, whatever the kernel cuts it into.
void WriteAll(int fd, const char* text, size_t length);

// Broken invariant of the allocator itself: names the place and aborts. Stays on in release builds,
// so only where it costs nothing measurable.
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);
#define PCMALLOC_CHECK(condition)               \
  (__builtin_expect(!!(condition), 1) ? (void)0 \
                                      : ::pcmalloc::CheckFailed(#condition, __FILE__, __LINE__))

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_REPORT_H_
