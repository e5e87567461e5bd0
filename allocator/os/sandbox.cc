// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/sandbox.h"

#include <fcntl.h>
#include <string.h>

#include "allocator/base/syscall.h"

namespace pcmalloc::os {

bool InSandbox() {
  char text[4096];
  const long fd =
      RawSyscall(SYS_openat, AT_FDCWD, "/proc/thread-self/status", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return true;
  const long size = RawSyscall(SYS_read, fd, text, sizeof(text) - 1);
  RawSyscall(SYS_close, fd);
  text[size < 0 ? 0 : size] = '\0';
  constexpr char kBefore[] = "\nSeccomp:\t";
  const char* const line = strstr(text, kBefore);
  return line == nullptr || line[sizeof(kBefore) - 1] != '0';
}

}  // namespace pcmalloc::os
