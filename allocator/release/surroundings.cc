// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/surroundings.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "allocator/base/file.h"
#include "allocator/base/syscall.h"

namespace pcmalloc::release {

Sandbox FindSandbox() {
  switch (File("/proc/thread-self/status").ByteAfter("\nSeccomp:\t")) {
    case File::kNothing:
      return Sandbox::kClosed;
    case '0':
      return Sandbox::kNone;
    default:
      return Sandbox::kReadsFiles;
  }
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
