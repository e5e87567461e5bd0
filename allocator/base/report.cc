// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/report.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "allocator/base/syscall.h"

namespace pcmalloc {
namespace {

void WriteLine(const TextBuffer& text) {
  Text<1280> line;
  line.Str("pcmalloc: ").Str(text.c_str(), text.size()).Str("\n");
  WriteAll(STDERR_FILENO, line.c_str(), line.size());
}

}  // namespace

void WriteAll(int fd, const char* text, size_t length) {
  while (length > 0) {
    const long written = RawSyscall(SYS_write, fd, text, length);
    if (written == -EINTR) continue;
    if (written <= 0) return;  // stderr is closed or full: there is nobody left to tell
    text += written;
    length -= static_cast<size_t>(written);
  }
}

void Warn(const TextBuffer& text) { WriteLine(text); }

void Fatal(const TextBuffer& text) {
  WriteLine(text);
  abort();
}

void CheckFailed(const char* condition, const char* file, int line) {
  Text<> text;
  text.Str("internal error: ").Str(condition).Str(" is false at ").Str(file).Str(":").Int(line);
  Fatal(text);
}

}  // namespace pcmalloc
