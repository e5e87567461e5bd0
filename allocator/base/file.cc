// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/file.h"

#include <fcntl.h>

#include "allocator/base/syscall.h"

namespace pcmalloc {

File::File(const char* path)
    : fd_(RawSyscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NOCTTY)) {}

File::~File() {
  if (opened()) RawSyscall(SYS_close, fd_);
}

size_t File::Read(char* to, size_t size) {
  if (!opened()) return 0;
  long got;
  do {
    got = RawSyscall(SYS_read, fd_, to, size);
  } while (got == -EINTR);
  return got < 0 ? 0 : static_cast<size_t>(got);
}

}  // namespace pcmalloc
