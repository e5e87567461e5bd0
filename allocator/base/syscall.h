// SPDX-License-Identifier: Apache-2.0
//
// Purpose: system calls whose result is an error number, never errno.
// Invariants: errno has the same value before and after; nothing is allocated.
// Cost: one system call.
#ifndef PCMALLOC_ALLOCATOR_BASE_SYSCALL_H_
#define PCMALLOC_ALLOCATOR_BASE_SYSCALL_H_

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pcmalloc {

// Puts errno back when the scope ends. malloc may set errno only on failure, free never may.
class ErrnoSaver {
 public:
  ErrnoSaver() : saved_(errno) {}
  ~ErrnoSaver() { errno = saved_; }
  ErrnoSaver(const ErrnoSaver&) = delete;
  ErrnoSaver& operator=(const ErrnoSaver&) = delete;

 private:
  const int saved_;
};

// Returns what the kernel returned: a value >= 0, or a negated error number (-ENOMEM, ...).
// Async-signal-safe, thread-safe.
template <typename... Args>
inline long RawSyscall(long number, Args... args) {
  ErrnoSaver saver;
  const long result = syscall(number, args...);
  return result == -1 ? -static_cast<long>(errno) : result;
}

// What a C library's function returns for such a result: -1 with errno set for an error number.
inline int CResult(long result) {
  if (result >= 0) return static_cast<int>(result);
  errno = static_cast<int>(-result);
  return -1;
}

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_SYSCALL_H_
