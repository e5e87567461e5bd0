// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/surroundings.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "allocator/base/syscall.h"

namespace pcmalloc::release {

Sandbox FindSandbox() {
  char text[4096];
  const long fd =
      RawSyscall(SYS_openat, AT_FDCWD, "/proc/thread-self/status", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Sandbox::kClosed;
  const long size = RawSyscall(SYS_read, fd, text, sizeof(text) - 1);
  RawSyscall(SYS_close, fd);
  if (size <= 0) return Sandbox::kClosed;
  text[size] = '\0';
  constexpr char kBefore[] = "\nSeccomp:\t";
  const char* const line = strstr(text, kBefore);
  const bool filtered = line == nullptr || line[sizeof(kBefore) - 1] != '0';
  return filtered ? Sandbox::kReadsFiles : Sandbox::kNone;
}

bool AloneInTheProcess() {
  struct stat tasks;
  // The directory has a link for each thread besides its own two; the main thread keeps its entry
  // when it has ended, but no memory any more that an executable could belong to.
  ErrnoSaver saver;
  if (stat("/proc/self/task", &tasks) != 0 || tasks.st_nlink > 4) return false;
  char name[8];
  return RawSyscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", name, sizeof(name)) == -ENOENT;
}

}  // namespace pcmalloc::release
