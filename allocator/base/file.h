// SPDX-License-Identifier: Apache-2.0
//
// Purpose: reads a file of the kernel's (/proc, /sys, a control group's).
// Invariants: openat, read and close are the only system calls: what a filter of system calls
//   leaves to any program; nothing is allocated; errno is kept; async-signal-safe. The descriptor
//   lives as long as the object and is closed by exec.
// Cost: the three system calls.
#ifndef PCMALLOC_ALLOCATOR_BASE_FILE_H_
#define PCMALLOC_ALLOCATOR_BASE_FILE_H_

#include <stddef.h>

namespace pcmalloc {

class File {
 public:
  explicit File(const char* path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool opened() const { return fd_ >= 0; }

  // The next bytes, up to `size` (> 0) of them; 0 at the end, where reading fails, and of a file
  // that is not there. A signal does not cut it short.
  size_t Read(char* to, size_t size);

  // Reads on up to `text` and returns the byte that follows it; kAbsent if it does not come,
  // kNothing if there is nothing to read. In pieces: the stack may be a signal handler's.
  int ByteAfter(const char* text);
  static constexpr int kAbsent = -1;
  static constexpr int kNothing = -2;

 private:
  const long fd_;
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_FILE_H_
