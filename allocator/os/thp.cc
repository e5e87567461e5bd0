// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/thp.h"

#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>

#include "allocator/base/syscall.h"
#include "allocator/base/text.h"
#include "allocator/os/memory.h"
#include "allocator/os/sandbox.h"

#ifndef PR_GET_THP_DISABLE
#define PR_GET_THP_DISABLE 42
#endif

namespace pcmalloc::os {
namespace {

// The word in brackets, or null.
const char* Chosen(const char* text, size_t length, size_t* word_length) {
  const char* const open = static_cast<const char*>(memchr(text, '[', length));
  if (open == nullptr) return nullptr;
  const char* const word = open + 1;
  const char* const close =
      static_cast<const char*>(memchr(word, ']', length - static_cast<size_t>(word - text)));
  if (close == nullptr) return nullptr;
  *word_length = static_cast<size_t>(close - word);
  return word;
}

bool Is(const char* word, size_t length, const char* text) {
  return strlen(text) == length && memcmp(word, text, length) == 0;
}

// 0 where there is no such file.
size_t ReadFile(const char* folder, const char* name, char* buffer, size_t size) {
  Text<256> path;
  path.Str(folder).Str(name);
  const long fd = RawSyscall(SYS_openat, AT_FDCWD, path.c_str(), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return 0;
  const long length = RawSyscall(SYS_read, fd, buffer, size);
  RawSyscall(SYS_close, fd);
  return length < 0 ? 0 : static_cast<size_t>(length);
}

}  // namespace

HugePages ParseHugePages(const char* text, size_t length) {
  size_t word_length;
  const char* const word = Chosen(text, length, &word_length);
  if (word == nullptr) return HugePages::kOnRequest;
  if (Is(word, word_length, "always")) return HugePages::kAlways;
  if (Is(word, word_length, "never")) return HugePages::kNever;
  return HugePages::kOnRequest;
}

HugePages FindHugePages(const char* folder) {
  // A filter that knows the program but not us might kill it for what follows.
  if (KernelPageSize() != 4096 || InSandbox()) return HugePages::kNever;
  // Newer kernels: bit 1 says that those who ask are served all the same.
  const long disabled = RawSyscall(SYS_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0);
  if (disabled > 0 && (disabled & 2) == 0) return HugePages::kNever;
  char text[128];
  size_t length = ReadFile(folder, "/hpage_pmd_size", text, sizeof(text));
  if (length != 0 && !Is(text, length, "2097152\n")) return HugePages::kNever;
  length = ReadFile(folder, "/hugepages-2048kB/enabled", text, sizeof(text));
  size_t word_length;
  const char* const word = Chosen(text, length, &word_length);
  if (word == nullptr || Is(word, word_length, "inherit")) {
    length = ReadFile(folder, "/enabled", text, sizeof(text));
  }
  return ParseHugePages(text, length);
}

}  // namespace pcmalloc::os
