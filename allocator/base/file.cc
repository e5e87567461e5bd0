// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/file.h"

#include <fcntl.h>
#include <string.h>

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

int File::ByteAfter(const char* text) {
  const size_t length = strlen(text);
  char piece[256];
  int found = kNothing;
  size_t size = 0;
  while (const size_t more = Read(piece + size, sizeof(piece) - size)) {
    found = kAbsent;
    size += more;
    // Not memmem, whose table takes as much stack as the piece.
    for (size_t i = 0; i + length < size; ++i) {
      if (memcmp(piece + i, text, length) == 0)
        return static_cast<unsigned char>(piece[i + length]);
    }
    // It may begin at the end of this piece.
    if (size > length) {
      memmove(piece, piece + size - length, length);
      size = length;
    }
  }
  return found;
}

}  // namespace pcmalloc
