// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/surroundings.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "allocator/base/file.h"
#include "allocator/base/syscall.h"

namespace pcmalloc::release {

Sandbox FindSandbox() {
  constexpr char kBefore[] = "\nSeccomp:\t";
  constexpr size_t kKept = sizeof(kBefore);
  // In pieces: the background thread, which asks, would need a page more of stack for all of it.
  char text[1024];
  File file("/proc/thread-self/status");
  Sandbox found = Sandbox::kClosed;
  size_t size = 0;
  while (const size_t more = file.Read(text + size, sizeof(text) - 1 - size)) {
    size += more;
    text[size] = '\0';
    found = Sandbox::kReadsFiles;
    const char* const line = strstr(text, kBefore);
    if (line != nullptr && line[sizeof(kBefore) - 1] != '\0') {
      if (line[sizeof(kBefore) - 1] == '0') found = Sandbox::kNone;
      break;
    }
    // The line may begin at the end of this piece.
    if (size > kKept) {
      memmove(text, text + size - kKept, kKept);
      size = kKept;
    }
  }
  return found;
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
